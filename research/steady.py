"""The step size's memory counts look-aheads instead of steps: β1 for each, however many steps lie between them."""

from __future__ import annotations

from typing import Any

from acme import Acme as Published
from acme import Decision, adapt


class Acme(Published):
    """`acme.Acme` with α ← β1·α + (1 - β1)·τ at each look-ahead; of one parameter group."""

    def _leap_by_two(self, trial: Any, loss: Any) -> None:
        (group,) = self.param_groups
        before, searching = group["step_size"], group["search_left"] > 0
        super()._leap_by_two(trial, loss)
        report = self.report
        assert report is not None
        if not searching and report.decision is not Decision.NON_FINITE:
            beta1 = group["betas"][0]
            numbers = report.loss, report.look_ahead_loss, report.slope, report.look_ahead_slope
            group["step_size"] = beta1 * before + (1 - beta1) * adapt(*numbers, before, beta1).target
