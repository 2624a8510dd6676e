"""The step size follows averages over look-aheads of both slopes and of the fall of the loss, not one batch's."""

from __future__ import annotations

import torch

from acme import Acme as Published
from acme import Measured, Move

MEMORY = 0.8  # decay rate, per look-ahead


class Acme(Published):
    """`acme.Acme` with τ from averages of p0, p1 and (l0 - l1)/α over about five look-aheads; of one parameter group.

    The averages are kept in the group, so that a run can be resumed.
    """

    def decide(self, seen: Measured) -> Move:
        move, (group,) = super().decide(seen), self.param_groups
        latest = torch.stack([seen.p0, seen.p1, seen.l0 - seen.l1])
        if group["search_left"] > 0 or not latest.isfinite().all():
            return move
        alpha = group["step_size"]  # of this look-ahead; what is seen is in units of it
        per_unit = (latest / alpha).tolist()
        averages = zip(group.get("averaged_slopes", per_unit), per_unit, strict=True)
        averages = group["averaged_slopes"] = [MEMORY * old + (1 - MEMORY) * new for old, new in averages]
        p0, p1, fall = latest.new_tensor(averages) * alpha
        return move._replace(
            step_size=super().decide(seen._replace(l1=seen.l0 - fall, p0=p0, p1=p1)).step_size
        )
