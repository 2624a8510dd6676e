"""The variants that were tried: each is the published optimizer where its idea makes no difference."""

import importlib
from typing import Any

import pytest
import torch
from common import batches, make_closure, net, vector

from acme import Acme

OPTIONS = {"acme": True, "gain": 1.5, "adapt_every": 5, "search_steps": 4, "total_steps": None}


def trained(make: Any, data: list, steps: int = 40, **options: Any) -> tuple[torch.Tensor, list, list]:
    """Weights, decisions and step sizes of a training; each step's batch is the next of `data`."""
    model = net()
    optimizer = make(model, 0.01, **{**OPTIONS, **options})
    decisions, step_sizes = [], []
    for i in range(steps):
        optimizer.step(make_closure(model, optimizer, data[i % len(data)]))
        decisions.append(optimizer.report.decision)
        step_sizes.append(optimizer.param_groups[0]["step_size"])
    return vector(model.parameters()), decisions, step_sizes


def same(one: tuple, other: tuple) -> None:
    # A bias in front of BatchNorm has a gradient of rounding only, which Adam divides by ε.
    torch.testing.assert_close(one[0], other[0], rtol=1e-9, atol=1e-8)
    assert one[1] == other[1]
    assert one[2] == pytest.approx(other[2], rel=1e-9)


@pytest.mark.parametrize("adam", [False, True])
def test_steady(adam: bool) -> None:
    """Every step a look-ahead: then a memory per look-ahead is one per step."""
    steady, data = importlib.import_module("research.steady"), batches()
    same(trained(steady.Acme, data, adam=adam, adapt_every=1), trained(Acme, data, adam=adam, adapt_every=1))
    assert trained(steady.Acme, data, adam=adam)[2] != trained(Acme, data, adam=adam)[2]


@pytest.mark.parametrize("adam", [False, True])
def test_averaged(adam: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a memory the averages are the latest numbers."""
    averaged, data = importlib.import_module("research.averaged"), batches()
    assert trained(averaged.Acme, data, adam=adam)[2] != trained(Acme, data, adam=adam)[2]
    monkeypatch.setattr(averaged, "MEMORY", 0.0)
    options = {"adam": adam, "adapt_every": 5, "search_steps": 4}
    same(trained(averaged.Acme, data, **options), trained(Acme, data, **options))


@pytest.mark.parametrize("adam", [False, True])
def test_other_batch(adam: bool) -> None:
    """Where all batches are the same one, the other is as well."""
    other, data = importlib.import_module("research.other_batch"), batches()
    same(trained(other.Acme, data[:1], adam=adam), trained(Acme, data[:1], adam=adam))
    assert trained(other.Acme, data, adam=adam)[2] != trained(Acme, data, adam=adam)[2]
    with pytest.raises(ValueError, match="asam"):
        trained(other.Acme, data, asam=True)


def test_unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient a thousand times the last enters the average whole."""
    limits = {}
    for name in ("acme", "research.unlimited"):
        monkeypatch.setattr("acme.acme.GROWTH_LIMIT", 2.0)  # puts the limit back behind the variant
        module = importlib.import_module(name)
        if name != "acme":
            importlib.reload(module)
        model, data = net(), batches()
        optimizer = module.Acme(model, 0.01, acme=True)
        optimizer.step(make_closure(model, optimizer, data[0]))

        def spoil(call: int, loss: torch.Tensor, model: Any = model) -> torch.Tensor:
            for p in model.parameters():
                p.grad.mul_(1000)
            return loss

        optimizer.step(make_closure(model, optimizer, data[1], spoil))
        limits[name] = optimizer.report.limit
    assert limits["acme"] < 0.1 and limits["research.unlimited"] == 1


def test_uncorrected() -> None:
    """As if bias correction had not been asked for."""
    variant, data = importlib.import_module("research.uncorrected"), batches()
    same(trained(variant.Acme, data, adam=True, bias_correction=True), trained(Acme, data, adam=True))
    assert trained(Acme, data, adam=True, bias_correction=True)[2] != trained(Acme, data, adam=True)[2]
