"""The look-ahead's losses and slopes come from the batch before, which the latest gradient says nothing of.

On the batch that has just entered the direction, a step looks better than it is for others. Costs one more evaluation
in each look-ahead, and the two of the other batch are not in a run's `evaluations`: add two for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from acme import Acme as Published
from acme import Measured, Move


class Acme(Published):
    """`acme.Acme`, without `asam`; of one parameter group. The search, the first look-ahead and, after an interruption,
    the first one again are the published ones."""

    other: Callable[[], Any] | None = None  # the closure of the batch before
    start: dict[str, float] | None = None  # that batch's loss where the step starts, and its slope

    def __init__(self, model: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        self.buffers = list(model.buffers()) if isinstance(model, nn.Module) else []

    def decide(self, seen: Measured) -> Move:
        start = {name: torch.full_like(seen.l0, value) for name, value in (self.start or {}).items()}
        return super().decide(seen._replace(**start))

    def step(self, closure: Any = None, scaler: Any = None) -> Any:
        other, self.other = self.other, closure
        (group,) = self.param_groups
        if group["asam"]:
            raise ValueError("Invalid asam: True (expected False in this variant)")
        if other is None or closure is None or group["search_left"] or not self.looks():
            return super().step(closure, scaler)
        params = group["params"]
        buffers = [buffer.clone() for buffer in self.buffers]
        with torch.enable_grad():
            l0 = float(other().detach())
        gradients = [p.grad.to(torch.float64, copy=True) for p in params]
        weights = [p.detach().to(torch.float64, copy=True) for p in params]
        for buffer, before in zip(self.buffers, buffers, strict=True):
            buffer.copy_(before)
        with self.step_in_parts(), torch.enable_grad():
            loss = closure()
            first = loss.detach().clone()
            self.look(loss)
            moves = [w - p.detach() for w, p in zip(weights, params, strict=True)]
            p0 = sum(float((move * g).sum()) for move, g in zip(moves, gradients, strict=True))
            self.start = {"l0": l0, "p0": p0}
            try:
                self.leap(other())
            finally:
                self.start = None
        return first
