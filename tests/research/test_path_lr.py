"""The finder that looks back: rates that can train, in the unit of the loss, from any start."""

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from common import batches, net
from torch import Tensor, nn

from research.path_lr import path_lr

SGD, ADAMW = functools.partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW


def found(
    model: nn.Module, losses: list[Callable[[], Tensor]], optimizer: Callable, **options: float
) -> float:
    def closure(loss: Callable[[], Tensor]) -> Tensor:
        model.zero_grad()
        value = loss()
        value.backward()
        return value

    closures = (functools.partial(closure, loss) for loss in itertools.cycle(losses))
    rate, evaluations = path_lr(model, closures, optimizer, **options)
    assert evaluations == 2 * 60 - 1
    return rate


@pytest.mark.parametrize("curvature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("lr", [1e-4, 1.0, 100.0])
def test_on_a_quadratic_it_is_below_where_gradient_descent_diverges(curvature: float, lr: float) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    rate = found(model, [lambda: curvature / 2 * model.weight.square().sum()], torch.optim.SGD, lr=lr)
    assert 0.1 < rate * curvature < 2


@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
def test_it_has_the_unit_of_the_loss(optimizer: Callable) -> None:
    """Of a loss in other units SGD's rate is as many times smaller, and AdamW's the same."""
    rates = []
    for scale in (1.0, 1024.0):
        model, unit = net(), scale if optimizer is SGD else 1.0

        def loss(batch: tuple, model: nn.Module = model, scale: float = scale) -> Tensor:
            return scale * nn.functional.cross_entropy(model(batch[0]), batch[1])

        losses = [functools.partial(loss, batch) for batch in batches()]
        rates.append(unit * found(model, losses, optimizer, lr=1e-2 / unit))
    assert rates[0] > 0
    assert rates[1] == pytest.approx(rates[0], rel=1e-3)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    with pytest.raises(FloatingPointError, match="nan"):
        found(model, [lambda: model.weight.sum() * float("nan")], SGD)
