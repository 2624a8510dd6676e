"""ACME: a PyTorch optimizer that finds its own step size."""

from . import watch
from .acme import Acme, Adaptation, Decision, Measured, Move, Report, adapt, search
from .averaging import get_polynomial_multi_avg_fn

__all__ = [
    "Acme", "Adaptation", "Decision", "Measured", "Move", "Report", "adapt", "get_polynomial_multi_avg_fn", "search",
    "watch",
]  # fmt: skip
