"""The step size follows averages over look-aheads of both slopes and of the fall of the loss, not one batch's."""

from __future__ import annotations

from typing import Any

from acme import Acme as Published
from acme import Decision, adapt

MEMORY = 0.8  # decay rate, per look-ahead


class Acme(Published):
    """`acme.Acme` with τ from averages of p0, p1 and (l0 - l1)/α over about five look-aheads; of one parameter group.

    The averages are kept in the group, so that a run can be resumed.
    """

    def _leap_by_two(self, trial: Any, loss: Any) -> None:
        (group,) = self.param_groups
        before, interval, searching = group["step_size"], group["look_interval"], group["search_left"] > 0
        super()._leap_by_two(trial, loss)
        report = self.report
        assert report is not None
        if searching or report.decision is Decision.NON_FINITE:
            return
        latest = report.slope, report.look_ahead_slope, (report.loss - report.look_ahead_loss) / before
        averages = group.setdefault("averaged_slopes", latest)
        averages = group["averaged_slopes"] = tuple(
            MEMORY * average + (1 - MEMORY) * value for average, value in zip(averages, latest, strict=True)
        )
        slope, look_ahead_slope, fall = averages
        memory = group["betas"][0] ** interval
        target = adapt(
            report.loss, report.loss - fall * before, slope, look_ahead_slope, before, memory
        ).target
        moved = memory * before + (1 - memory) * target
        group["step_size"] = min(max(moved, before / 2), 2 * before)
