"""A learning rate for other optimizers: the step size that ACME's first steps find on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import nn

from .acme import Acme, Decision, Measured, Move, Report, _surroundings, damping

__all__ = ["Found", "find_lr"]

SEARCH_STEPS = 20  # at most so many first steps only look for a start
GROWING = 5  # last steps in all of which the step size grew as it does at most: it has found none
MEMORY = 0.9  # largest decay rate of the step size's memory; one above would outlast the steps


@dataclass(frozen=True)
class Found:
    """What `find_lr` has found; `print` says it in a line."""

    lr: float | None  #: of the first group, for `optimizer`; None if there is none
    groups: list[dict[str, float | None]]  #: each group's "lr"
    reason: str | None  #: why there is no rate
    optimizer: str  #: whose rate it is
    evaluations: int  #: of loss and gradient
    trace: list[Report]  #: of each step: losses, slopes, step size, decision

    def __str__(self) -> str:
        price = f"{len(self.trace)} steps, {self.evaluations} evaluations"
        if self.lr is None:
            return f"no learning rate for {self.optimizer} ({price}): {self.reason}"
        return f"lr={self.lr:.3g} for {self.optimizer} ({price})"

    def plot(self, ax: Any = None) -> Any:
        """The step size and the loss over the steps, drawn on matplotlib's `ax` (or a new one), which it returns."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(layout="constrained").add_subplot()
        losses, steps = ax.twinx(), range(1, len(self.trace) + 1)
        ax.semilogy(steps, [report.step_size for report in self.trace], color="C0")
        losses.plot(steps, [report.loss for report in self.trace], color="C1")
        ax.set(xlabel="step", title=str(self).partition(" (")[0])
        ax.set_ylabel("step size α (logarithmic)", color="C0")
        losses.set_ylabel("loss of the batch", color="C1")
        return ax


class _Finder(Acme):
    def decide(self, seen: Measured) -> Move:
        return super().decide(seen._replace(beta1=seen.beta1.clamp(max=MEMORY)))


def find_lr(
    model: nn.Module | Iterable[Any], closures: Iterable[Callable[[], Any]], *, adam: bool = False, steps: int = 60,
    gain: float = 2.0, betas: tuple[float, float] = (0.9, 0.999), buffers_of: nn.Module | None = None,
) -> Found:  # fmt: skip
    """A learning rate for `torch.optim.SGD` with momentum, or with `adam` for `AdamW`, to begin a falling schedule at.

    Takes `steps` steps of ACME from the model as it is and says what step size they end with, γ·gain·α; for SGD, whose
    momentum adds gradients up, times 1 - β1. Then weights, gradients, torch's random generators, and of an `nn.Module`
    buffers and training mode are as before, after an exception or Ctrl-C, too.

    Args:
        model: an `nn.Module`, its parameters, or group dicts, whose `lr` (positive) give the ratios of the groups' rates.
        closures: of one batch each, at least `steps`: zeroes the gradients, evaluates loss and gradient and returns the
            true loss (gradients neither scaled nor clipped); see `closures`. All ranks of a distributed training call
            this together, with as many.
        adam: for AdamW, else for SGD.
        steps: of ACME, two evaluations each.
        gain: factor on ACME's steps and on what is found.
        betas: SGD's momentum (the first one), or AdamW's.
        buffers_of: the module that closures evaluate, where `model` is a part of it: it is put back, too.

    Returns `Found`, whose `lr` is None where there is no rate; `reason` says why. Raises ValueError, TypeError as `Acme`.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps <= GROWING:
        raise ValueError(f"Invalid steps: {steps!r} (expected a whole number above {GROWING})")
    whole = model if buffers_of is None else buffers_of
    modules = [whole] if isinstance(whole, nn.Module) else []
    options: dict[str, Any] = dict(acme=True, adam=adam, bias_correction=adam, unbiased_squares=adam)
    options |= dict(betas=betas, gain=gain, total_steps=None, search_steps=min(SEARCH_STEPS, steps // 2))
    optimizer = _Finder(model, buffers_of=buffers_of, **options)
    groups = optimizer.param_groups
    if not all(float(group["lr"]) > 0 for group in groups):
        raise ValueError("Invalid lr of a group: 0 (expected a positive number)")
    of_modules = (param for module in modules for param in module.parameters())
    params = list(dict.fromkeys([*(param for group in groups for param in group["params"]), *of_modules]))
    weights = [param.detach().clone() for param in params]
    gradients = [(param.grad, None if param.grad is None else param.grad.clone()) for param in params]
    training = {module: module.training for root in modules for module in root.modules()}
    restore = _surroundings(modules, params, {})
    trace: list[Report] = []
    try:
        for _, closure in zip(range(steps), closures, strict=False):
            optimizer.step(closure)
            trace.append(optimizer.report)  # type: ignore[arg-type]
        reason = _why_not(trace, steps, groups[0])
    except FloatingPointError as error:
        if not str(error).startswith("Non-finite"):  # not Acme's
            raise
        reason = f"loss or gradient are not finite at the start of step {len(trace) + 1}"
    finally:
        with torch.no_grad():
            for param, weight, (gradient, copy) in zip(params, weights, gradients, strict=True):
                param.copy_(weight)
                param.grad = gradient if copy is None else gradient.copy_(copy)
        for module, mode in training.items():
            module.training = mode
        restore()
    of = f"AdamW(betas={groups[0]['betas']})" if adam else f"SGD(momentum={groups[0]['betas'][0]:g})"
    rates: list[float | None] = []
    for group in groups:
        beta, scheduled = group["betas"][0], float(group["lr"]) / group["reference_lr"]
        rate = damping(beta) * scheduled * gain * group["step_size"]
        rates.append(None if reason else rate if adam else rate * (1 - beta))
    evaluations = sum(report.evaluations for report in trace)
    return Found(rates[0], [{"lr": rate} for rate in rates], reason, f"torch.optim.{of}", evaluations, trace)


def _why_not(trace: list[Report], steps: int, group: dict[str, Any]) -> str | None:
    """Why these steps give no rate; None if they do."""
    if len(trace) < steps:
        return f"there were {len(trace)} batches for {steps} steps"
    seen: list[Any] = [report for report in trace if report.slope is not None]
    if not seen:
        return "no parameter has a gradient after the closure"
    # The slope says so, or two slopes downhill and a loss that is higher.
    uphill = [r.slope <= 0 or (r.look_ahead_slope > 0 and r.look_ahead_loss > r.loss) for r in seen]
    if 2 * sum(uphill) > len(uphill):
        return "most steps are not downhill: is the gradient that of the loss?"
    # How far the loss fell, by how far the slopes at both ends say.
    grown = [r for r in seen if r.decision == Decision.GROW]
    falls = [(r.loss - r.look_ahead_loss) / (r.slope + r.look_ahead_slope) / r.step_size * 2 for r in grown]
    if falls and not 0.5 < median(falls) < 2:
        return "the loss does not fall as its gradient says: is that scaled, or clipped?"
    sizes = [report.step_size for report in trace[-GROWING:]] + [group["step_size"]]
    bound = (2 - min(group["betas"][0], MEMORY)) * (1 - 1e-6)  # where the losses are too close to tell
    if all(after >= bound * before for before, after in pairwise(sizes)):
        return "the step size was still growing fast at the end"
    return None
