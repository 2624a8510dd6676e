"""`Acme(..., compile=True)`: the other tests' checks, with the arithmetic compiled."""

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

from acme import Acme, Decision

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler, which inductor needs"
)
Compiled = partial(Acme, compile=True)


@pytest.fixture(autouse=True)
def every_pass_compiled():
    """Not one falls back to running as it is, for too many variants or another reason."""
    counters.clear()
    yield
    assert not counters["graph_break"] and not counters["unimplemented"]


@pytest.mark.parametrize("number", range(len(test_reference.INDEX)))
def test_trajectory(number, monkeypatch) -> None:
    """The numbers of the published implementation."""
    monkeypatch.setattr(test_reference, "Acme", Compiled)
    test_reference.test_trajectory(number)


@all_modes
def test_exceptions(mode, monkeypatch) -> None:
    """Everything as before the step, wherever the closure fails."""
    monkeypatch.setattr(test_nonfinite, "Acme", Compiled)
    test_nonfinite.test_before_the_look_ahead(mode, float("nan"), "gradient", 3)


@pytest.mark.parametrize("mode", [MODES[8], MODES[12], MODES[15]], ids=mode_id)
def test_parameters_of_several_spans(mode, monkeypatch) -> None:
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


@pytest.mark.parametrize("mode", [dict(acme=True, adam=False), dict(acme=True, adam=True)], ids=mode_id)
@pytest.mark.parametrize("unexpected", ["limit", "worse", "second limit", "zero gradient"])
def test_what_one_pass_took_for_granted(mode, unexpected) -> None:
    """Compiled, look-ahead and leap are taken before it is known that nothing speaks against them."""
    results = []
    for make in (Acme, Compiled):
        model, data = net(), batches()
        optimizer = make(model, start(mode), **mode)
        train(model, optimizer, data, 3)

        def spoil(call, loss, model=model):
            weights = [p.grad for p in model.parameters()]
            if unexpected == "limit" and call == 1 or unexpected == "second limit" and call == 2:
                for gradient in weights:
                    gradient.mul_(1000)
            if unexpected == "worse" and call == 2:
                return loss + 1
            if unexpected == "zero gradient":
                weights[1].zero_()
            return loss

        before = counters["stats"]["unique_graphs"]
        optimizer.step(make_closure(model, optimizer, data[0], spoil))
        assert counters["stats"]["unique_graphs"] == before  # ready for everything since the first steps
        report = optimizer.report
        assert (report.limit < 1) == (unexpected == "limit")
        train(model, optimizer, data, 2)
        results.append(
            (report, vector(model.parameters()), vector(e["exp_avg"] for e in optimizer.state.values()))
        )
    (a, *expected), (b, *actual) = results
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    assert a.decision == b.decision and a.applied == pytest.approx(b.applied, rel=1e-9)
    if unexpected == "worse":
        assert a.look_ahead_loss > a.loss


@pytest.mark.parametrize("mode", [dict(acme=True, adam=False), dict(acme=True, adam=True)], ids=mode_id)
def test_search(mode) -> None:
    """A search's steps move nothing, compiled or not, although one pass could look and leap."""
    results = []
    for make in (Acme, Compiled):
        model, data = net(), batches()
        optimizer = make(model, 1e-4, **mode, search_steps=12, adapt_every=3)
        reports = []
        for i in range(12):
            train(model, optimizer, data, 1, first=i)
            reports.append(optimizer.report)
        results.append((reports, vector(model.parameters())))
    (a, expected), (b, actual) = results
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)
    assert [r.decision for r in a] == [r.decision for r in b]
    assert [r.applied for r in a] == pytest.approx([r.applied for r in b], rel=1e-7)
    assert sum(r.applied == 0 for r in a) > 2


@pytest.mark.parametrize("mode", [dict(acme=True, adam=False), dict(acme=True, adam=True)], ids=mode_id)
def test_non_finite_look_ahead(mode) -> None:
    model, data = net(), batches()
    optimizer = Compiled(model, start(mode), **mode)
    train(model, optimizer, data, 3)
    before, step_size = snapshot(model, optimizer), optimizer.param_groups[0]["step_size"]
    optimizer.step(
        make_closure(model, optimizer, data[0], lambda call, loss: loss * float("nan") if call == 2 else loss)
    )
    assert optimizer.report.decision is Decision.NON_FINITE
    after = snapshot(model, optimizer)
    for key, _ in model.named_parameters():
        assert torch.equal(before["model"][key], after["model"][key])
    assert optimizer.param_groups[0]["step_size"] == step_size * 0.9


def test_nesterovs_term(monkeypatch) -> None:
    monkeypatch.setattr(test_edges, "Acme", Compiled)
    test_edges.test_nesterovs_term_never_makes_weights_infinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_resume_and_no_recompilation(dtype) -> None:
    """A checkpoint continues bit for bit; after two steps nothing is compiled any more."""
    mode = dict(acme=True, adam=True, asam=True, nesterov=True)
    data = batches(dtype=dtype)
    model = net(dtype)
    optimizer = Compiled(model, 0.01, rho=0.1, **mode)
    train(model, optimizer, data, 2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(model, optimizer, data, 6, first=2)
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
