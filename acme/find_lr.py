"""A learning rate for other optimizers: the step size that ACME's first steps find on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .acme import Acme, Report, _devices, _Surroundings, damping

__all__ = ["Found", "closures", "find_lr"]

SEARCH_STEPS = 20  # at most so many first steps only look for a start
GROWING = 5  # last steps in all of which the step size grew by its bound: it has found none


@dataclass(frozen=True)
class Found:
    """What `find_lr` has found; `print` says it in a line."""

    lr: (
        float | None
    )  #: of the first group, for `torch.optim.SGD` with momentum β1 or for `AdamW`; None if there is none
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


def closures(
    model: nn.Module, loader: Iterable[Any], criterion: Callable[..., Tensor]
) -> Iterator[Callable[[], Tensor]]:
    """A closure for each ``(inputs, targets)`` of `loader`, in pass after pass, on the device of the model's parameters.

    Each zeroes the model's gradients, evaluates ``criterion(model(inputs), targets)`` and its gradient, and returns it.
    """
    device, some = next(model.parameters()).device, True
    while some:
        some = False
        for inputs, targets in loader:
            some, batch = True, (inputs.to(device), targets.to(device))

            def closure(inputs: Tensor = batch[0], targets: Tensor = batch[1]) -> Tensor:
                model.zero_grad()
                loss = criterion(model(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            yield closure


def find_lr(
    model: nn.Module | Iterable[Any], closures: Iterable[Callable[[], Any]], *, adam: bool = False, steps: int = 60,
    gain: float = 2.0, betas: tuple[float, float] = (0.9, 0.999),
) -> Found:  # fmt: skip
    """A learning rate for `torch.optim.SGD` with momentum, or with `adam` for `AdamW`, to begin a falling schedule at.

    Takes `steps` steps of ACME from the model as it is and says what step size they end with, γ·gain·α; for SGD, whose
    momentum adds gradients up, times 1 - β1. Then weights, gradients, training mode, torch's random generators and the
    buffers (of an `nn.Module`) are as before, after an exception or Ctrl-C, too.

    Args:
        model: an `nn.Module`, its parameters, or group dicts, whose `lr` (positive) give the ratios of the groups' rates.
        closures: of one batch each, at least `steps`: zeroes the gradients, evaluates loss and gradient and returns the
            true loss (not one scaled for float16); see `closures`. All ranks of a distributed training call this together.
        adam: for AdamW, else for SGD.
        steps: of ACME, two evaluations each.
        gain: factor on ACME's steps and on what is found.
        betas: SGD's momentum (the first one), or AdamW's.

    Returns `Found`, whose `lr` is None where there is no rate; `reason` says why. Raises ValueError, TypeError as `Acme`.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps <= GROWING:
        raise ValueError(f"Invalid steps: {steps!r} (expected a whole number above {GROWING})")
    modules = [model] if isinstance(model, nn.Module) else []
    options: dict[str, Any] = dict(acme=True, adam=adam, bias_correction=adam, unbiased_squares=adam)
    options |= dict(betas=betas, gain=gain, total_steps=None, search_steps=min(SEARCH_STEPS, steps // 2))
    optimizer = Acme(model, **options)
    groups = optimizer.param_groups
    params = [param for group in groups for param in group["params"]]
    weights = [param.detach().clone() for param in params]
    gradients = [(param.grad, None if param.grad is None else param.grad.clone()) for param in params]
    training = {module: module.training for root in modules for module in root.modules()}
    restore = _Surroundings(modules).saved(_devices(params))
    trace: list[Report] = []
    try:
        for _, closure in zip(range(steps), closures, strict=False):
            optimizer.step(closure)
            trace.append(optimizer.report)  # type: ignore[arg-type]
        reason = _why_not(trace, steps, groups[0])
    except FloatingPointError:
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
    damped = [(group["betas"][0], damping(group["betas"][0]) * gain * group["step_size"]) for group in groups]
    rates = [None if reason else rate if adam else rate * (1 - beta1) for beta1, rate in damped]
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
    sizes = [report.step_size for report in trace[-GROWING:]] + [group["step_size"]]
    bound = (2 - group["betas"][0]) * (1 - 1e-6)  # where the losses are too close to tell
    if all(after >= bound * before for before, after in pairwise(sizes)):
        return "the step size was still growing by its bound at the end"
    return None
