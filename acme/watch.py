"""What is watched in a training, and warned of once.

Closures that do not evaluate again, gradients clipped in the closure, ranks that differ.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .acme import Acme, Decision, Report

__all__ = ["watch_evaluations", "watch_for_clipping", "watch_ranks"]

# Relative differences and counts that chance does not bring about.
UNEVEN = 1e-8  # variance over the ranks of gradients that should be equal on all
SAME_NORM = 1e-5  # up to which two norms of the gradient are the same, as clipping leaves them
CLIPPED_FALL = 1.1  # fall of the loss, in units of what the slopes say, that they do not account for
CLIPPED_STEPS = 8
FIRST_STEPS = 10  # in which ranks are compared; later once in as many


def watch_for_clipping(optimizer: Acme, report: Report, read: dict[str, Tensor]) -> None:
    """Warn of gradients clipped in the closure.

    A sign of it is a largest norm that is met again and again, in steps whose loss falls by more than the two
    slopes (smaller than they should be) account for: by the trapezoid rule, exact for a quadratic.
    """
    p0, p1, l1 = report.slope, report.look_ahead_slope, report.look_ahead_loss
    if p0 is None or p1 is None or l1 is None or report.decision is Decision.NON_FINITE:
        return
    norm = float(read["first"][1:].view(-1, 4)[:, 3].sum()) ** 0.5
    largest, steps = vars(optimizer).get("_clipping", (0.0, 0))
    if norm < largest * (1 - SAME_NORM):
        return
    expected = report.step_size * (p0 + p1) / 2
    clear = min(p0, p1) > 0 and report.decision is not Decision.UNCLEAR
    if norm > largest * (1 + SAME_NORM):
        largest, steps = norm, 0
    elif clear and report.loss - l1 > CLIPPED_FALL * expected:
        steps += 1
    else:
        steps = 0
    vars(optimizer)["_clipping"] = largest, steps
    if steps >= CLIPPED_STEPS:
        optimizer.warn(
            f"Gradients seem to be clipped or normalised in the closure: their norm is {norm:.6g} again and again, "
            "and the loss falls faster than they say. That falsifies the slopes; pass max_grad_norm to Acme and "
            "leave the closure's gradient as it is."
        )


def watch_ranks(optimizer: Acme, report: Report, read: dict[str, Tensor]) -> None:
    """Warn of gradients that nobody has averaged over the ranks: their norms differ."""
    step, steps = optimizer._step, optimizer.param_groups[0]["steps"]
    if step is None or step.ranks is None or (steps >= FIRST_STEPS and steps % FIRST_STEPS):
        return
    if any(block.share != 1 / step.size for block in step.blocks):
        return  # each rank has a part of it
    norms = [norm for block in step.blocks for norm in torch._foreach_norm(block.gradients())]
    norm = torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms]).sum()
    sums = torch.stack([norm, norm.square()])
    dist.all_reduce(sums, group=step.ranks)
    mean, square = (sums / step.size).tolist()
    if square - mean * mean > UNEVEN * mean * mean:
        optimizer.warn(
            "The ranks' gradients differ, so the ranks drift apart: they have to be averaged before each step "
            "(DistributedDataParallel, fully_shard; with no_sync, all but the last backward). If the ranks "
            "train independently, pass Acme a process_group of one rank."
        )


def watch_evaluations(optimizer: Acme, report: Report, read: dict[str, Tensor]) -> None:
    """Warn of a closure that has not evaluated again at the look-ahead point."""
    step = optimizer._step
    if step is None or (report.look_ahead_loss, report.look_ahead_slope) != (report.loss, report.slope):
        return
    now = [(p.grad, p.grad._version) for p in step.params if p.grad is not None]
    same = [a is c and b == d for (a, b), (c, d) in zip(now, step.gradients, strict=False)]
    if same and all(same):
        optimizer.warn(
            "The closure seems not to evaluate again: at the look-ahead point it returned the same loss and left "
            "the same gradients. It has to zero the gradients, evaluate loss and gradient, and return the loss."
        )


Acme.watchers += [watch_for_clipping, watch_ranks, watch_evaluations]
