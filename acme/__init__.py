"""ACME: a PyTorch optimizer that finds its own step size."""

from . import watch
from .acme import Acme, Adaptation, Decision, Measured, Move, Report, adapt, search
from .averaging import get_polynomial_multi_avg_fn
from .closures import closures
from .find_lr import Found, find_lr

__all__ = [
    "Acme", "Adaptation", "Decision", "Found", "Measured", "Move", "Report", "adapt", "closures", "find_lr",
    "get_polynomial_multi_avg_fn", "search", "watch",
]  # fmt: skip
