"""Averaged weights, for steps that are annealed less: what torch's `AveragedModel` takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

__all__ = ["get_polynomial_multi_avg_fn"]

_Tensors = tuple[Tensor, ...] | list[Tensor]  # as torch's foreach operations and averages have it


def get_polynomial_multi_avg_fn(
    power: float = 8.0,
) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """A `multi_avg_fn` of `torch.optim.swa_utils.AveragedModel`: averaged weights, for steps annealed less.

    After t updates the average is ``a ← a + (power + 1)/(t + power)·(w - a)``: the weights that a training passes
    through, those of step s counting about as (s/t)^power, so that the last ninth counts for two thirds at a `power` of
    8. There is nothing to fit to the length of the training. Integer buffers are copied.

    Args:
        power: how fast early weights are forgotten, at least 0; 0 averages all of them alike.

    Raises:
        TypeError, ValueError: `power` is no such number.

    Source: Shamir and Zhang, *Stochastic Gradient Descent for Non-smooth Optimization*, ICML 2013 (polynomial-decay
    averaging); a power of 8 as in Ivgi, Hinder and Carmon, *DoG is SGD's Best Friend*, ICML 2023.
    """
    if isinstance(power, bool) or not isinstance(power, Real):
        raise TypeError(f"Invalid power: {power!r} (expected a number)")
    if not 0 <= power < math.inf:
        raise ValueError(f"Invalid power: {power} (expected a finite number of at least 0)")
    decay = float(power)

    @torch.no_grad()
    def update(averaged: _Tensors, current: _Tensors, updates: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        difference = torch._foreach_sub(current, averaged)
        torch._foreach_mul_(difference, (decay + 1) / (updates + 1 + decay))
        torch._foreach_add_(averaged, difference)

    return update
