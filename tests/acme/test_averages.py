"""Averaged weights: torch's AveragedModel with the polynomial-decay average, against its definition and DoG's own."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from acme import Acme, get_polynomial_multi_avg_fn


def shares(power: float, count: int) -> list[float]:
    """What each of `count` weights counts for: the products of the definition, multiplied out."""
    found: list[float] = []
    for t in range(1, count + 1):
        new = (power + 1) / (t + power)
        found = [share * (1 - new) for share in found] + [new]
    return found


@given(
    st.floats(0, 100),
    st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2), min_size=1, max_size=12),
)
def test_the_average_is_its_definition(power: float, values: list[tuple[float, float]]) -> None:
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    averaged = AveragedModel(model, multi_avg_fn=get_polynomial_multi_avg_fn(power))
    for pair in values:
        with torch.no_grad():
            model.weight.copy_(torch.tensor([pair]))
        averaged.update_parameters(model)
    counted = torch.tensor(shares(power, len(values)), dtype=torch.float64)
    assert counted.sum().item() == pytest.approx(1) and (counted >= -1e-15).all()
    expected = counted @ torch.tensor(values, dtype=torch.float64)
    # The step's factor is a float32 tensor, as torch makes of the number of updates.
    torch.testing.assert_close(averaged.module.weight.detach()[0], expected, rtol=1e-5, atol=1e-2)


def trained(steps: int) -> list[nn.Module]:
    """A network with BatchNorm after each of so many steps of Acme."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = Acme(model, acme=True, total_steps=None)
    x, y = torch.randn(32, 4), torch.randint(0, 3, (32,))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    passed = []
    for _ in range(steps):
        optimizer.step(closure)
        passed.append(copy.deepcopy(model))
    return passed


def averages(models: list[nn.Module], use_buffers: bool = True, **how: object) -> dict[str, torch.Tensor]:
    averaged = AveragedModel(models[0], use_buffers=use_buffers, **how)
    for model in models:
        averaged.update_parameters(model)
    return averaged.module.state_dict()


def test_equals_dogs_averager() -> None:
    """dog-optimizer's PolynomialDecayAverager, of weights and statistics; its steps counted are copied."""
    dog = pytest.importorskip("dog", reason="pip install '.[peers]'")
    models = trained(30)
    model = copy.deepcopy(models[0])
    averager = dog.PolynomialDecayAverager(model)
    for each in models:
        model.load_state_dict(each.state_dict())
        averager.step()
    theirs = averager.averaged_model.state_dict()
    ours = averages(models, multi_avg_fn=get_polynomial_multi_avg_fn())
    assert ours["1.num_batches_tracked"] == 30
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-6)


def test_a_power_of_zero_is_torchs_mean() -> None:
    models = trained(10)
    # torch's own cannot average integer buffers.
    ours = averages(models, use_buffers=False, multi_avg_fn=get_polynomial_multi_avg_fn(0))
    torchs = averages(models, use_buffers=False, multi_avg_fn=get_swa_multi_avg_fn())
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(dtype: torch.dtype) -> None:
    models = [model.to(dtype) for model in trained(3)]
    ours = averages(models, multi_avg_fn=get_polynomial_multi_avg_fn())
    assert ours["0.weight"].dtype == dtype and ours["0.weight"].isfinite().all()


@pytest.mark.parametrize("power", [-1, float("nan"), float("inf")])
def test_a_power_that_is_none_is_refused(power: float) -> None:
    with pytest.raises(ValueError, match="Invalid power"):
        get_polynomial_multi_avg_fn(power)


@pytest.mark.parametrize("power", [True, "8", None])
def test_a_power_that_is_no_number_is_refused(power: object) -> None:
    with pytest.raises(TypeError, match="Invalid power"):
        get_polynomial_multi_avg_fn(power)
