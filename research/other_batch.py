"""The look-ahead's losses and slopes come from the batch before, which the latest gradient says nothing of.

On the batch that has just entered the direction, a step looks better than it is for others. Costs one more evaluation
in each look-ahead, and the two of the other batch are not in a run's `evaluations`: add two for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from acme import Acme as Published
from acme import Decision, adapt


class Acme(Published):
    """`acme.Acme`, without `asam`; of one parameter group. The search, the first look-ahead and, after an interruption,
    the first one again are the published ones."""

    _other: Callable[[], Any] | None = None

    def step(self, closure: Any = None, scaler: Any = None) -> Any:
        other, self._other = self._other, closure
        (group,) = self.param_groups
        if group["asam"]:
            raise ValueError("Invalid asam: True (expected False in this variant)")
        if other is None or closure is None or group["look_in"] or group["search_left"]:
            return super().step(closure, scaler)
        params = group["params"]
        before, memory = group["step_size"], group["betas"][0] ** group["look_interval"]
        interval = group["look_interval"]
        buffers = [buffer.clone() for buffer in self._model.buffers()]
        with torch.enable_grad():
            l0 = float(other().detach())
        gradients = [p.grad.clone() for p in params]
        weights = [p.detach().clone() for p in params]
        for buffer, kept in zip(self._model.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        with self.step_in_parts(), torch.enable_grad():
            loss = closure()
            first = loss.detach().clone()
            self.look(loss)
            slope = sum(
                float(((w - p.detach()).double() * g.double()).sum())
                for w, p, g in zip(weights, params, gradients, strict=True)
            )
            ahead = other()
            self._trial.l0 = l0
            self.leap(ahead)
        report = self.report
        if report.decision is not Decision.NON_FINITE:
            numbers = l0, report.look_ahead_loss, slope / before, report.look_ahead_slope
            moved = memory * before + (1 - memory) * adapt(*numbers, before, memory).target
            group["step_size"] = moved if interval == 1 else min(max(moved, before / 2), 2 * before)
        return first
