"""ACME: a PyTorch optimizer that finds its own step size."""

from .acme import Acme, Adaptation, Decision, Report, adapt, get_polynomial_multi_avg_fn, search

__all__ = ["Acme", "Adaptation", "Decision", "Report", "adapt", "get_polynomial_multi_avg_fn", "search"]
