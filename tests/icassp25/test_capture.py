"""Captured steps, on the CPU with a stand-in for CUDA's graphs: the numbers of the training without them.

The stand-in knows what a graph knows: the operations, and the tensors they read and wrote when they were captured.
tests/acme/test_cuda.py has the same with real graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acme import Acme
from icassp25 import capture, data, optimizers, tasks, train
from icassp25.config import RunConfig

CPU = torch.device("cpu")
TINY = RunConfig(
    dataset="synthetic", train_images=100, batch_size=12, depth=4, width_alpha=1, epochs=2, device="cpu",
    precision="float64", threads=1,
)  # fmt: skip
TEXT = RunConfig(
    dataset="text", train_images=64, batch_size=8, width_alpha=8, depth=1, epochs=2, device="cpu",
    precision="float64", threads=1,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder(TorchDispatchMode):
    """What is called, in its order."""

    replays = 0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for number, argument in enumerate(func._schema.arguments):
            if argument.is_write:
                written = args[number] if number < len(args) else kwargs.get(argument.name)
                self.before += [(t, t.clone()) for t in tree_leaves(written) if isinstance(t, torch.Tensor)]
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        Recorder.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(device: torch.device, work: Callable[[], Any], pool: Any = None) -> tuple[Callable, Any]:
    """As `capture.capture`: all is as before, but for new tensors."""
    recorder, state = Recorder(), torch.get_rng_state()
    with recorder:
        result = work()
    with torch.no_grad():
        for tensor, value in reversed(recorder.before):
            tensor.copy_(value)
    torch.set_rng_state(state)
    return torch.no_grad()(recorder.replay), result


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "capture", record)
    monkeypatch.setattr(capture, "warm_up", lambda device, work: work())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    monkeypatch.setattr(data, "SYNTHETIC_TEST_IMAGES", 100)
    monkeypatch.setattr(Recorder, "replays", 0)


class Capturable(Acme):
    """As it is made on CUDA; not compiled, so that the stand-in sees its operations."""

    def __init__(self, model: Any, lr: float, **options: Any) -> None:
        super().__init__(model, torch.tensor(lr, dtype=torch.float64), capturable=True, **options)


def experiment(config: RunConfig, captured: bool) -> train.Experiment:
    made = train.Experiment(config, tasks.load(config, CPU), CPU, Capturable if captured else Acme)
    made.captures = captured
    return made


def same(one: train.Experiment, other: train.Experiment) -> None:
    states = [each.model.state_dict() for each in (one, other)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-9, atol=1e-10)
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


MODES = {
    "sgd": {},
    "asam": {"asam": True},
    "acme": {"acme": True},
    "all": {"acme": True, "adam": True, "asam": True, "nesterov": True, "lr": 0.001},
    "kept": {"acme": True, "adapt_steps": 9},
    "squares": {"acme": True, "adam": True, "unbiased_squares": True, "lr": 0.001},
}


@pytest.mark.parametrize("config", [TINY, replace(TINY, dropout=0.3), TEXT], ids=["wrn", "dropout", "text"])
@pytest.mark.parametrize("mode", MODES)
def test_captured_training_is_the_same(mode: str, config: RunConfig) -> None:
    config = replace(config, **MODES[mode])
    rows, trained, states = [], [], []
    for captured in (False, True):
        each = experiment(config, captured)
        rows.append([replace(each.epoch(number), seconds=0.0) for number in (1, 2)])
        states.append(torch.get_rng_state())
        trained.append(each)
    same(*trained)
    assert torch.equal(*states)
    for plain, captured in zip(*rows, strict=True):
        assert (plain.steps, plain.evaluations, plain.shares) == (
            captured.steps,
            captured.evaluations,
            captured.shares,
        )
        for name in ("lr", "step_size", "train_loss", "train_error", "test_loss", "test_error"):
            assert getattr(captured, name) == pytest.approx(getattr(plain, name), rel=1e-8)
    steps, kinds = rows[0][-1].steps, 2 if mode == "kept" else 1
    # A graph saves the buffers; all but the first steps of a kind are an evaluation and another graph for each part.
    assert Recorder.replays >= 2 * (steps - kinds * capture.WARM_UPS)
    assert trained[1].optimizer.param_groups[0]["steps"] == steps


@pytest.mark.parametrize("mode", ["sgd", "acme"])
def test_goes_on_from_a_checkpoint(mode: str, tmp_path: Any) -> None:
    config = replace(TINY, epochs=3, dropout=0.1, **MODES[mode])
    whole, first, second = (experiment(config, True) for _ in range(3))
    torch.manual_seed(0)
    for number in (1, 2, 3):
        row = whole.epoch(number)
    torch.manual_seed(0)
    rows = [first.epoch(number) for number in (1, 2)]
    first.save(tmp_path / "checkpoint", rows)
    second.load(tmp_path / "checkpoint")
    again = second.epoch(3)
    same(whole, second)
    assert again.train_loss == pytest.approx(row.train_loss, rel=1e-9) and again.shares == row.shares


@pytest.mark.parametrize("mode", ["sgd", "acme"])
@pytest.mark.parametrize("step", [2, 6])
def test_what_is_not_finite_ends_the_run(mode: str, step: int) -> None:
    """In an ordinary step and in a captured one; nothing moves by it."""
    lost = experiment(replace(TINY, **MODES[mode]), True)
    training, calls = lost.task.training, []

    def spoiled(*arguments: Any) -> Any:
        calls.append(1)
        inputs, targets = training(*arguments)
        inputs[step * TINY.batch_size] = float("nan")
        return inputs, targets

    lost.task.training = spoiled  # type: ignore[method-assign]
    row = lost.epoch(1)
    assert row.diverged and calls
    assert all(p.isfinite().all() for p in lost.model.parameters())


def test_peers_have_captured_evaluations() -> None:
    rows = []
    for captured in (False, True):
        each = experiment(replace(TINY, optimizer="sgd"), captured)
        rows.append(replace(each.epoch(1), seconds=0.0))
        assert each.captured_step is None
    assert rows[0].train_loss == pytest.approx(rows[1].train_loss, rel=1e-9)
    assert Recorder.replays == rows[1].steps


@pytest.mark.parametrize(
    ("options", "capturable"),
    [
        ({}, True),
        ({"acme": True}, True),
        ({"acme": True, "search_steps": 5}, False),
        ({"acme_script": "x"}, False),
    ],
)
def test_where_the_optimizer_is_made_capturable(options: dict, capturable: bool) -> None:
    made: dict[str, Any] = {}

    class Recorded(Acme):
        def __init__(self, model: Any, lr: Any, **options: Any) -> None:
            made.update(options, lr=lr)
            super().__init__(model, lr, **options)

    for captured in (False, True):
        made.clear()
        optimizers.make(replace(TINY, **options), torch.nn.Linear(1, 1), Recorded, captured)
        assert (
            made.get("capturable", False) == (captured and capturable) == isinstance(made["lr"], torch.Tensor)
        )
