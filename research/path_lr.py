"""A learning rate finder that looks back along the way a training has come: for any optimizer, without a gain.

`acme.find_lr` looks one step ahead, along a direction that the batch has just entered, for which that step is better than
for others. Here a batch that is not trained on yet is evaluated twice, at the weights of some steps ago and at those of
now, and `acme.adapt` says how many times as long the way between the two should have been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from statistics import fmean
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Optimizer

from acme import adapt, search

SEARCH_STEPS = 20  # at most so many first batches look for a start


class _Evaluation(NamedTuple):
    loss: float
    gradient: Tensor
    weights: Tensor


def path_lr(
    model: nn.Module, closures: Iterable[Callable[[], Tensor]], optimizer: Callable[..., Optimizer],
    steps: int = 60, lr: float = 1e-3,
) -> tuple[float, int]:  # fmt: skip
    """A learning rate for ``optimizer(parameters, lr=…)``, and how many evaluations of loss and gradient it took.

    Trains the model on `steps` batches, of which the first search from `lr`. `closures` are those of `acme.find_lr`; all
    parameters have a gradient after each. Raises FloatingPointError where the training diverges.
    """
    params, batches, evaluations = list(model.parameters()), islice(closures, steps), 0

    def now() -> Tensor:
        return parameters_to_vector(params).detach()

    def evaluate(closure: Callable[[], Tensor], weights: Tensor) -> _Evaluation:
        nonlocal evaluations
        evaluations += 1
        vector_to_parameters(weights.clone(), params)
        return _Evaluation(closure().item(), parameters_to_vector([param.grad for param in params]), weights)

    def between(start: _Evaluation, end: _Evaluation) -> tuple[float, float, float, float]:
        way = start.weights - end.weights
        return start.loss, end.loss, way.dot(start.gradient).item(), way.dot(end.gradient).item()

    origin, latest, over = now(), 0, False
    for closure in islice(batches, SEARCH_STEPS):
        start = evaluate(closure, origin)
        optimizer(params, lr=lr).step()
        found, over = search(*between(start, evaluate(closure, now())), lr, latest)
        lr, latest = found, (found > lr) - (found < lr) or latest
        if over:
            break

    vector_to_parameters(origin.clone(), params)
    training, before, rates, asked = optimizer(params, lr=lr), {}, [], []
    for t, closure in enumerate(batches):
        here, back = now(), 0
        if t > 0:  # back to the latest power of two in the first half
            back = 2 ** int(math.log2(t / 2)) if t > 1 else 0
            before = {step: weights for step, weights in before.items() if step >= back}
            start, end = evaluate(closure, before[back]), evaluate(closure, here)
            if not math.isfinite(end.loss):
                raise FloatingPointError(f"Loss {end.loss} after {t} steps")
            factor = adapt(*between(start, end), alpha=1.0, beta1=0.0).target
            asked.append(max(factor, 0.0) * fmean(rates[back:]))
            lr = fmean(asked[back:])
        else:
            evaluate(closure, here)
        if t & (t - 1) == 0:
            before[t] = here
        rates.append(lr)
        training.param_groups[0]["lr"] = lr
        training.step()
    return lr, evaluations
