"""After `adapt_steps`, a look-ahead in every tenth step still, from which the step size moves as from any other."""

from __future__ import annotations

from acme import Acme as Published

EVERY = 10


class Acme(Published):
    """`acme.Acme` that goes on looking ahead, rarely."""

    def looks(self) -> bool:
        group = self.param_groups[0]
        return super().looks() or (group["acme"] and group["steps"] % EVERY == 0)
