"""What the optimizer's tests share: small problems, all modes, and closures."""

import itertools

import pytest
import torch
from torch import nn

from acme import Acme

MODES = [
    dict(zip(("acme", "adam", "asam", "nesterov"), flags, strict=True))
    for flags in itertools.product((False, True), repeat=4)
]


def mode_id(mode: dict) -> str:
    return "+".join(name for name, on in mode.items() if on) or "sgd"


def start(mode: dict) -> float:
    """An initial step size from which the small problems train in every mode."""
    return 0.01 if mode["adam"] else 0.1


def evaluations(mode: dict) -> int:
    return 1 + mode["asam"] + mode["acme"]


def net(dtype=torch.float64, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 3)]
    return nn.Sequential(*layers).to(dtype)


def batches(count: int = 4, dtype=torch.float64) -> list:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(12, 5, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(0, 3, (12,), generator=generator),
        )
        for _ in range(count)
    ]


def make_closure(model: nn.Module, optimizer: torch.optim.Optimizer, batch, spoil=None):
    """The closure of a training loop; `spoil(call number, loss)` may change what the evaluation gives."""
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss if spoil is None else spoil(calls, loss)

    return closure


def loss_closure(model: nn.Module, optimizer: torch.optim.Optimizer):
    """The closure for a module that returns its own loss."""

    def closure():
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss

    return closure


def train(model, optimizer, data, steps: int, first: int = 0) -> list[float]:
    return [
        optimizer.step(make_closure(model, optimizer, data[i % len(data)])).item()
        for i in range(first, first + steps)
    ]


def vector(params) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in params])


def snapshot(model: nn.Module, optimizer: Acme) -> dict:
    """Everything a step may change, copied."""
    state = {
        (i, key): value.clone()
        for i, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    groups = [
        {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in g.items() if k != "params"}
        for g in optimizer.param_groups
    ]
    return {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "state": state,
        "groups": groups,
        "rng": torch.get_rng_state(),
    }


def assert_same(left: dict, right: dict, ignore: tuple[str, ...] = ()) -> None:
    """Bit for bit."""
    for part in ("model", "state"):
        if part in ignore:
            continue
        assert left[part].keys() == right[part].keys()
        for key, value in left[part].items():
            assert torch.equal(value, right[part][key]), (part, key)
    if "groups" not in ignore:
        assert left["groups"] == right["groups"]
    if "rng" not in ignore:
        assert torch.equal(left["rng"], right["rng"])


all_modes = pytest.mark.parametrize("mode", MODES, ids=mode_id)
