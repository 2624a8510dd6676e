"""ACME: an optimizer that finds its own step size."""

from .acme import Acme, Adaptation, Decision, Measured, Move, Report, adapt, search
from .averaging import get_polynomial_multi_avg_fn

__all__ = [
    "Acme", "Adaptation", "Decision", "Measured", "Move", "Report", "adapt", "get_polynomial_multi_avg_fn", "search",
]  # fmt: skip
