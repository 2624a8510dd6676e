"""Without the limit F on the growth of the gradient average: every gradient enters it whole."""

from __future__ import annotations

import acme.acme
from acme import Acme

__all__ = ["Acme"]

acme.acme.GROWTH_LIMIT = 1e30
