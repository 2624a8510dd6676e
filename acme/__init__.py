"""ACME: a PyTorch optimizer that finds its own step size."""

from .acme import Acme, Adaptation, Decision, Report, adapt, search

__all__ = ["Acme", "Adaptation", "Decision", "Report", "adapt", "search"]
