"""`Acme(..., compile=True)`: the other tests' checks, with the arithmetic compiled."""

import math
import shutil
from functools import partial

import pytest
import test_edges
import test_nonfinite
import test_reference
import torch
from common import (
    MODES,
    all_modes,
    assert_same,
    batches,
    make_closure,
    mode_id,
    net,
    snapshot,
    start,
    train,
    vector,
)
from torch import nn
from torch._dynamo.utils import counters

from acme import Acme

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler, which inductor needs"
)
Compiled = partial(Acme, compile=True)


@pytest.fixture(autouse=True)
def all_is_compiled():
    """Nothing falls back to running as it is, for too many variants or another reason."""
    counters.clear()
    yield
    assert not counters["graph_break"] and not counters["unimplemented"]


@test_reference.all_runs
def test_trajectory(file, number, monkeypatch) -> None:
    """The numbers of the published implementation."""
    monkeypatch.setattr(test_reference, "Acme", Compiled)
    test_reference.test_trajectory(file, number)


@all_modes
def test_exceptions(mode, monkeypatch) -> None:
    """Everything as before the step, wherever the closure fails."""
    monkeypatch.setattr(test_nonfinite, "Acme", Compiled)
    test_nonfinite.test_before_the_look_ahead(mode, math.nan, "gradient", 3)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode["acme"]], ids=mode_id)
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_non_finite_look_ahead(mode, place, monkeypatch) -> None:
    monkeypatch.setattr(test_nonfinite, "Acme", Compiled)
    test_nonfinite.test_at_the_look_ahead(mode, math.inf, place, 3)


@pytest.mark.parametrize("mode", [MODES[8], MODES[12], MODES[15]], ids=mode_id)
def test_large_parameters(mode) -> None:
    """Large tensors, channels_last, two groups: as without `compile`, up to float32's rounding."""
    results = []
    for make in (Acme, Compiled):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 200, 3), nn.Flatten(), nn.Linear(3200, 30)
        )
        model.to(memory_format=torch.channels_last)
        x, y = torch.randn(8, 3, 8, 8), torch.randint(0, 30, (8,))
        names = list(model.named_parameters())
        groups = [{"params": names[:3]}, {"params": names[3:], "lr": 0.003, "weight_decay": 0.1}]
        optimizer = make(groups, 0.001, total_steps=10, **mode)
        reports = []
        for _ in range(5):
            optimizer.step(make_closure(model, optimizer, (x, y)))
            reports.append(optimizer.report)
        results.append((reports, vector(model.parameters())))
    (reports, weights), (compiled_reports, compiled_weights) = results
    torch.testing.assert_close(compiled_weights, weights, rtol=1e-4, atol=1e-5)
    for a, b in zip(reports, compiled_reports, strict=True):
        assert a.decision == b.decision
        assert (b.loss, b.slope, b.step_size, b.applied) == pytest.approx(
            (a.loss, a.slope, a.step_size, a.applied), rel=1e-3
        )


@pytest.mark.parametrize("mode", [MODES[8], MODES[12], MODES[15]], ids=mode_id)
@pytest.mark.parametrize("unexpected", ["limit", "worse", "second limit", "zero gradient"])
def test_no_recompilation_for_what_is_rare(mode, unexpected) -> None:
    """After three steps nothing is compiled any more, whatever comes."""
    results = []
    for make in (Acme, Compiled):
        model, data = net(), batches()
        optimizer = make(model, start(mode), rho=0.1, **mode)
        train(model, optimizer, data, 3)

        def spoil(call, loss, model=model):
            gradients = [p.grad for p in model.parameters()]
            if unexpected == "limit" and call == 1 or unexpected == "second limit" and call == 2:
                for gradient in gradients:
                    gradient.mul_(1000)
            if unexpected == "worse" and call == 2 + mode["asam"]:
                return loss + 1
            if unexpected == "zero gradient":
                gradients[1].zero_()
            return loss

        with torch._dynamo.config.patch(error_on_recompile=True):
            optimizer.step(make_closure(model, optimizer, data[0], spoil))
            report = optimizer.report
            train(model, optimizer, data, 2)
        averages = [average for entry in optimizer.state.values() for average in entry.values()]
        results.append((report, vector(model.parameters()), vector(averages)))
    (a, *expected), (b, *actual) = results
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    assert a.decision == b.decision and a.applied == pytest.approx(b.applied, rel=1e-9)
    assert unexpected != "worse" or a.look_ahead_loss > a.loss
    assert mode["asam"] or (a.limit < 1) == (unexpected == "limit")


@pytest.mark.parametrize("mode", [MODES[8], MODES[12]], ids=mode_id)
def test_search_and_a_step_size_that_stays(mode) -> None:
    results = []
    for make in (Acme, Compiled):
        model, data = net(), batches()
        optimizer = make(model, 1e-4, **mode, search_steps=12, adapt_steps=10)
        reports = []
        for i in range(14):
            train(model, optimizer, data, 1, first=i)
            reports.append(optimizer.report)
        results.append((reports, vector(model.parameters())))
    (a, expected), (b, actual) = results
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)
    assert [r.decision for r in a] == [r.decision for r in b]
    assert [r.applied for r in a] == pytest.approx([r.applied for r in b], rel=1e-7)
    assert sum(r.applied == 0 for r in a) > 2 and sum(r.decision is None for r in a) == 4


def test_nesterovs_term(monkeypatch) -> None:
    monkeypatch.setattr(test_edges, "Acme", Compiled)
    test_edges.test_nesterovs_term_never_makes_weights_infinite()


@all_modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_resume_and_no_recompilation(mode, dtype) -> None:
    """A checkpoint continues bit for bit; after three steps nothing is compiled any more."""
    data = batches(dtype=dtype)
    model = net(dtype)
    optimizer = Compiled(model, 0.01, rho=0.1, **mode)
    train(model, optimizer, data, 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(model, optimizer, data, 5, first=3)
        saved, weights = optimizer.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
        saved = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, saved)
        train(model, optimizer, data, 3)
        expected = snapshot(model, optimizer)
        again = net(dtype)
        again.load_state_dict(weights)
        other = Compiled(again, 0.01, rho=0.1, **mode)
        other.load_state_dict(saved)
        train(again, other, data, 3)
    assert_same(expected, snapshot(again, other), ignore=("rng",))


def test_argument() -> None:
    with pytest.raises(TypeError, match="compile"):
        Acme(net(), compile=1)
