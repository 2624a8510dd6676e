"""`Acme(..., capturable=True)`: the ordinary optimizer's numbers, and nothing that a CUDA graph could not hold.

All on the CPU: a dispatch mode fails where the host would read a number, and a stand-in for graphs records and replays.
tests/acme/test_cuda.py has real graphs.
"""

import copy
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from common import (
    MODES,
    all_modes,
    assert_same,
    batches,
    evaluations,
    make_closure,
    mode_id,
    net,
    snapshot,
    start,
    train,
    vector,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acme import Acme, Decision

READS = {getattr(torch.ops.aten, name) for name in ("_local_scalar_dense", "equal", "is_nonzero", "nonzero")}


class NoOperationReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in READS, f"the host reads: {func}"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reads() -> Iterator[None]:
    """Fail where the host would wait for the device."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the host reads a tensor")

    with pytest.MonkeyPatch.context() as patch, NoOperationReads():
        for name in ("tolist", "numpy", "cpu"):  # on the CPU, these are no operations
            patch.setattr(torch.Tensor, name, refuse)
        yield


def pair(mode: dict, variant: str = "plain", **options) -> list[tuple[nn.Module, Acme]]:
    """A network with an ordinary optimizer, and its twin with a capturable one."""
    found = []
    for capturable in (False, True):
        model = net()
        options = dict(options, **mode, capturable=capturable, total_steps=30, weight_decay=0.01)
        groups: Any = model
        if variant == "clipped, two groups":
            named = list(model.named_parameters())
            groups = [
                {"params": named[:3]},
                {"params": named[3:], "lr": start(mode) / 3, "betas": (0.8, 0.99)},
            ]
            options.update(max_grad_norm=0.6)
        if variant == "unbiased squares":
            options.update(bias_correction=True, unbiased_squares=True)
        found.append((model, Acme(groups, start(mode), **options)))
    return found


def numbers(optimizer: Acme) -> list[float]:
    """The report; NaN for what there is not."""
    return [math.nan if value is None else float(value) for value in vars(optimizer.report).values()]


def compare(pairs: list[tuple[nn.Module, Acme]]) -> None:
    """Weights, buffers, averages and groups to 1e-12."""
    (model, optimizer), (twin, other) = pairs
    close = dict(rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()), **close)
    averages = [[a for entry in o.state_dict()["state"].values() for a in entry.values()] for _, o in pairs]
    torch.testing.assert_close(*averages, **close)
    for ours, theirs in zip(optimizer.param_groups, other.param_groups, strict=True):
        for name in ("step_size", "t", "annealing_step", "reference_lr", "steps"):
            assert float(theirs[name]) == pytest.approx(ours[name], rel=1e-12), name


@pytest.mark.parametrize(
    ("mode", "variant"),
    [
        pytest.param(mode, variant, id=f"{mode_id(mode)}-{variant}")
        for mode in MODES
        for variant in ("plain", "clipped, two groups", "unbiased squares")
        if mode["adam"] or variant != "unbiased squares"
    ],
)
def test_same_numbers_and_nothing_is_read(mode, variant) -> None:
    """From the first step on."""
    (model, optimizer), (twin, other) = pairs = pair(mode, variant)
    data, decisions = batches(), []
    for i in range(15):
        if mode["acme"] and i % 6 == 5:  # the look-ahead is worse
            for group in (*optimizer.param_groups, *other.param_groups):
                group["step_size"] *= 100
        train(model, optimizer, data, 1, first=i)
        closure = make_closure(twin, other, data[i % 4])
        with no_reads():
            other.step(closure)
        assert numbers(other) == pytest.approx(numbers(optimizer), rel=1e-11, abs=1e-12, nan_ok=True)
        decisions.append(optimizer.report.decision)
    compare(pairs)
    group = other.param_groups[0]
    assert isinstance(group["step_size"], torch.Tensor) and group["step_size"].shape == ()
    assert not mode["acme"] or len(set(decisions)) > 1


@all_modes
def test_a_step_size_that_stays(mode) -> None:
    (model, optimizer), (twin, other) = pairs = pair(mode, adapt_steps=3 if mode["acme"] else None)
    data = batches()
    for i in range(6):
        train(model, optimizer, data, 1, first=i)
        closure = make_closure(twin, other, data[i % 4])
        with no_reads():
            other.step(closure)
    compare(pairs)
    assert numbers(other) == pytest.approx(numbers(optimizer), rel=1e-11, nan_ok=True)


@all_modes
@pytest.mark.parametrize("place", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(mode, place, value) -> None:
    """At each evaluation: the state is that of the ordinary optimizer. Where that raises, `report` says so."""
    for bad in range(1, evaluations(mode) + 1):
        (model, optimizer), (twin, other) = pairs = pair(mode)
        data = batches()
        for each, of in pairs:
            train(each, of, data, 3)

            def spoil(call, loss, model=each, bad=bad):
                if call != bad:
                    return loss
                if place == "loss":
                    return loss.detach() + value
                model[4].weight.grad[1, 1] = value
                return loss

            closure = make_closure(each, of, data[3], spoil)
            if of is optimizer and not (mode["acme"] and bad == evaluations(mode)):
                buffers = [b.clone() for b in each.buffers()]
                with pytest.raises(FloatingPointError):
                    of.step(closure)
                for buffer, value_of_first in zip(each.buffers(), buffers, strict=True):
                    assert torch.equal(buffer, value_of_first)
            elif of is optimizer:
                of.step(closure)
            else:
                before = snapshot(each, of)
                with no_reads():
                    of.step(closure)
                assert of.report.decision is Decision.NON_FINITE and of.report.applied == 0
                for name, p in each.named_parameters():
                    assert torch.equal(p, before["model"][name])
        # BatchNorm has seen a batch more, and the host counts the step: it cannot know.
        twin.load_state_dict({**twin.state_dict(), **dict(model.named_buffers())})
        for group, counted in zip(optimizer.param_groups, other.param_groups, strict=True):
            assert counted["steps"] == 4
            counted["steps"] = group["steps"]
        compare(pairs)
        for each, of in pairs:
            train(each, of, data, 3, first=4)
        compare(pairs)


def test_search_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="search_steps"):
        Acme(net(), acme=True, capturable=True, search_steps=5)


@all_modes
@pytest.mark.parametrize("way", ["file", "deepcopy"])
def test_round_trip(mode, way) -> None:
    """Bit for bit, and a copy's numbers are its own."""
    _, (model, optimizer) = pair(mode, "clipped, two groups")
    data = batches()
    train(model, optimizer, data, 3)
    if way == "deepcopy":
        other, resumed = copy.deepcopy((model, optimizer))
    else:
        _, (other, resumed) = pair(mode, "clipped, two groups")
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        other.load_state_dict(weights)
        resumed.load_state_dict(state)
    before = snapshot(other, resumed)
    assert_same(snapshot(model, optimizer), before)
    losses = train(model, optimizer, data, 4, first=3)
    assert_same(snapshot(other, resumed), before)
    assert train(other, resumed, data, 4, first=3) == losses
    assert_same(snapshot(model, optimizer), snapshot(other, resumed))


class Recorder(TorchDispatchMode):
    """What a CUDA graph knows: the operations and the tensors that they read and wrote, nothing of the Python around."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in READS, f"the host reads: {func}"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@all_modes
@pytest.mark.parametrize("unbiased", [False, True])
def test_parts_in_graphs_of_the_caller(mode, unbiased) -> None:
    """Recorded in the fourth step and replayed from then on, with evaluations in between: the ordinary steps."""
    unbiased = dict(bias_correction=True, unbiased_squares=True) if unbiased and mode["adam"] else {}
    options = dict(**mode, **unbiased, total_steps=20, weight_decay=0.01, max_grad_norm=0.6)
    model, twin, data = net(), net(), batches()
    ordinary = Acme(model.named_parameters(), start(mode), **options)
    optimizer = Acme(twin.named_parameters(), start(mode), **options, capturable=True)
    loss = torch.zeros((), dtype=torch.float64)
    recorded: list[Recorder] = []

    def evaluate(batch) -> None:
        """Everything in the same memory."""
        optimizer.zero_grad(set_to_none=False)
        found = nn.functional.cross_entropy(twin(batch[0]), batch[1])
        found.backward()
        loss.copy_(found.detach())

    for i in range(14):
        train(model, ordinary, data, 1, first=i)
        if i > 3:
            for recorder in recorded:
                evaluate(data[i % 4])
                recorder.replay()
        else:
            with optimizer.step_in_parts():
                while optimizer.next_part is not None:
                    evaluate(data[i % 4])
                    recorder = Recorder()
                    with recorder:
                        getattr(optimizer, optimizer.next_part)(loss)
                    recorded += [recorder] * (i == 3)
        torch.testing.assert_close(
            vector(twin.parameters()), vector(model.parameters()), rtol=1e-10, atol=1e-12
        )
        assert numbers(optimizer) == pytest.approx(numbers(ordinary), rel=1e-9, abs=1e-11, nan_ok=True)
    assert len(recorded) == evaluations(mode)
    assert float(optimizer.param_groups[0]["t"]) == ordinary.param_groups[0]["t"] == 15
