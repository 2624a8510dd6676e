"""The variants that were tried: each is the published optimizer where its idea makes no difference."""

import importlib
from typing import Any

import pytest
import torch
from common import batches, make_closure, net, vector

from acme import Acme

OPTIONS = {"acme": True, "gain": 1.5, "adapt_steps": 30, "search_steps": 4, "total_steps": None}


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
def test_every(adam: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every K-th step after the first; K of 1 is the published optimizer, and where ACME is off nothing looks."""
    every, data = importlib.import_module("research.every"), batches()
    decisions = trained(every.Acme, data, adam=adam, adapt_steps=15)[1]
    assert [i for i, decision in enumerate(decisions) if decision is not None] == [*range(15), 20, 30]
    monkeypatch.setattr(every, "EVERY", 1)
    adapted = trained(every.Acme, data, adam=adam, adapt_steps=15)
    same(adapted, trained(Acme, data, adam=adam, adapt_steps=None))
    off = {"acme": False, "gain": 1.0, "adapt_steps": None, "search_steps": 0, "adam": adam}
    same(trained(every.Acme, data, **off), trained(Acme, data, **off))


@pytest.mark.parametrize("adam", [False, True])
def test_averaged(adam: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a memory the averages are the latest numbers."""
    averaged, data = importlib.import_module("research.averaged"), batches()
    assert trained(averaged.Acme, data, adam=adam)[2] != trained(Acme, data, adam=adam)[2]
    monkeypatch.setattr(averaged, "MEMORY", 0.0)
    same(trained(averaged.Acme, data, adam=adam), trained(Acme, data, adam=adam))


def test_averaged_goes_on_from_a_state() -> None:
    averaged, data = importlib.import_module("research.averaged"), batches()
    whole = trained(averaged.Acme, data, steps=12)

    def resumed(model: Any, *arguments: Any, **options: Any) -> Any:
        optimizer = averaged.Acme(model, *arguments, **options)
        for i in range(6):
            optimizer.step(make_closure(model, optimizer, data[i % len(data)]))
        other = averaged.Acme(model, *arguments, **options)
        other.load_state_dict(optimizer.state_dict())
        return other

    part = trained(resumed, data[2:] + data[:2], steps=6)
    assert torch.equal(part[0], whole[0]) and part[1:] == (whole[1][6:], whole[2][6:])


@pytest.mark.parametrize("adam", [False, True])
def test_other_batch(adam: bool) -> None:
    """Where all batches are the same one, the other is as well."""
    other, data = importlib.import_module("research.other_batch"), batches()
    same(trained(other.Acme, data[:1], adam=adam), trained(Acme, data[:1], adam=adam))
    different = trained(other.Acme, data, adam=adam)
    assert all(decision is None for decision in different[1][30:])
    assert different[2] != trained(Acme, data, adam=adam)[2]
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
