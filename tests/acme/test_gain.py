"""`gain`, `adapt_steps` and `search_steps`: options on top of the published algorithm, off by default.

That both follow their formulas in all modes is `test_step.py`'s comparison with the oracle; that they survive
checkpoints, exceptions and bad numbers is in `test_state.py` and `test_fuzz.py`.
"""

import math

import pytest
import torch
from common import assert_same, batches, make_closure, net, snapshot, train, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from acme import Acme, Decision, search

GAMMA = 2 * (1 - 0.9) / (1 + 0.9) * (1 + 2 * 0.9) / (2 - 0.9)  # of the default betas

ACME_MODES = [
    {"acme": True, "adam": adam, "asam": asam, "nesterov": nesterov}
    for adam in (False, True)
    for asam in (False, True)
    for nesterov in (False, True)
]


@pytest.mark.parametrize("mode", ACME_MODES)
def test_gain_multiplies_the_applied_step(mode) -> None:
    data, reports, moves = batches(), [], []
    for gain in (1.0, 3.0):
        model = net()
        before = vector(model.parameters())
        optimizer = Acme(model, 0.01, **mode, gain=gain)
        train(model, optimizer, data, 1)
        reports.append(optimizer.report)
        moves.append(vector(model.parameters()) - before)
    assert reports[1].applied == pytest.approx(3 * reports[0].applied)
    assert reports[1].step_size == reports[0].step_size
    torch.testing.assert_close(moves[1], 3 * moves[0], rtol=1e-9, atol=1e-12)


def kept(model, data, n: int = 3, **options) -> Acme:
    """An optimizer after its last step that adapts."""
    optimizer = Acme(model, 0.01, **{"total_steps": None, **options}, adapt_steps=n)
    train(model, optimizer, data, n)
    return optimizer


@pytest.mark.parametrize("mode", ACME_MODES)
def test_a_step_that_keeps_is_one_of_gamma_alpha(mode) -> None:
    """Without a look-ahead the step is the one that `acme=False` takes with γ·α as its learning rate."""
    model, data = net(), batches()
    optimizer = kept(model, data, **mode, weight_decay=0.1)
    plain = net()
    other = Acme(plain, 0.01, **{**mode, "acme": False}, weight_decay=0.1, total_steps=None)
    other.load_state_dict(optimizer.state_dict())
    plain.load_state_dict(model.state_dict())
    for group in other.param_groups:
        group.update(acme=False, adapt_steps=None, lr=GAMMA * optimizer.param_groups[0]["step_size"])
    losses = train(model, optimizer, data, 1), train(plain, other, data, 1)
    assert losses[0] == losses[1]
    assert optimizer.report.decision is None and optimizer.report.look_ahead_loss is None
    assert optimizer.report.applied == pytest.approx(other.param_groups[0]["lr"], rel=1e-12)
    assert optimizer.report.evaluations == 1 + mode["asam"]
    torch.testing.assert_close(vector(model.parameters()), vector(plain.parameters()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ACME_MODES)
@pytest.mark.parametrize("search_steps", [0, 4])
def test_the_published_algorithm_then_a_step_size_that_stays(mode, search_steps) -> None:
    """Bit for bit as without for N steps, those of a search included; then γ·gain·α, annealing and scheduled as always."""
    n, total, data, results = 7, 20, batches(), []
    for adapt_steps in (None, n):
        model = net()
        optimizer = Acme(
            model,
            0.01,
            **mode,
            gain=2.0,
            total_steps=total,
            adapt_steps=adapt_steps,
            search_steps=search_steps,
        )
        train(model, optimizer, data, n)
        results.append((vector(model.parameters()), optimizer.report, optimizer.param_groups[0]["step_size"]))
    (weights, report, alpha), (others, *same) = results
    assert torch.equal(weights, others) and same == [report, alpha]
    for done in range(n, total + 3):
        optimizer.param_groups[0]["lr"] = 0.01 if done % 2 else 0.005
        assert not optimizer.looks()
        train(model, optimizer, data, 1, first=done)
        report, annealing = optimizer.report, 0.01 + 0.99 * (1 + math.cos(math.pi * min(done / total, 1))) / 2
        assert (report.decision, report.look_ahead_loss, report.slope) == (None, None, None)
        assert report.evaluations == 1 + mode["asam"]
        assert report.step_size == optimizer.param_groups[0]["step_size"] == alpha
        assert report.applied == pytest.approx(2 * GAMMA * annealing * alpha * (1 if done % 2 else 0.5))


@settings(max_examples=30, deadline=None)
@given(
    lr=st.floats(-4, 2).map(lambda x: 10.0**x),
    n=st.integers(1, 40),
    gain=st.sampled_from([0.5, 1.0, 2.0]),
    beta1=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_the_step_size_moves_within_half_and_double(lr, n, gain, beta1) -> None:
    """From any start, in every step that adapts; of which there are N."""
    model, data = net(), batches()
    optimizer = Acme(model, lr, betas=(beta1, 0.999), acme=True, adapt_steps=n, gain=gain)
    group, decisions = optimizer.param_groups[0], []
    for i in range(40):
        before = group["step_size"]
        train(model, optimizer, data, 1, first=i)
        decisions.append(optimizer.report.decision)
        assert before / 2 * (1 - 1e-12) <= group["step_size"] <= 2 * before * (1 + 1e-12)
        assert decisions[-1] is not None or group["step_size"] == before
    assert all(decision is not None for decision in decisions[:n]) and set(decisions[n:]) <= {None}


def test_a_failed_look_ahead_counts_as_a_step() -> None:
    model, data = net(), batches()
    optimizer = kept(model, data, n=3, acme=True)
    other = Acme(net(), 0.01, acme=True, adapt_steps=4, total_steps=None)
    other.load_state_dict({**optimizer.state_dict()})
    group = optimizer.param_groups[0]
    group["adapt_steps"] = 4  # another look-ahead, and that fails
    alpha = group["step_size"]
    spoil = lambda call, loss: loss if call == 1 else loss * math.inf
    optimizer.step(make_closure(model, optimizer, data[0], spoil))
    assert optimizer.report.decision is Decision.NON_FINITE
    assert group["step_size"] == 0.9 * alpha
    train(model, optimizer, data, 1)
    assert optimizer.report.decision is None and group["step_size"] == 0.9 * alpha


@pytest.mark.parametrize("mode", ACME_MODES)
@pytest.mark.parametrize("stop", [2, 3, 5])
def test_resume_before_at_and_after_the_last_step_that_adapts(mode, stop) -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.01, **mode, adapt_steps=3, total_steps=10)
    train(model, optimizer, data, stop)
    other = net()
    other.load_state_dict(model.state_dict())
    resumed = Acme(other, 0.5, **mode, adapt_steps=3, total_steps=10)
    resumed.load_state_dict(optimizer.state_dict())
    for i in range(stop, 8):
        assert train(model, optimizer, data, 1, first=i) == train(other, resumed, data, 1, first=i)
        assert optimizer.report == resumed.report
    assert_same(snapshot(model, optimizer), snapshot(other, resumed))


magnitudes = st.floats(-12, 12).map(lambda e: 10.0**e)
signed = st.builds(lambda sign, size: sign * size, st.sampled_from([-1.0, 0.0, 1.0]), magnitudes)


@settings(max_examples=500)
@given(
    l0=signed, l1=st.one_of(signed, st.just(math.inf), st.just(math.nan)), p0=signed, p1=signed, alpha=magnitudes,
    latest=st.integers(-1, 1), scale=st.integers(-9, 9).map(lambda e: 2.0**e),
)  # fmt: skip
def test_a_search_is_bounded_and_scale_free(l0, l1, p0, p1, alpha, latest, scale) -> None:
    target, over = search(l0, l1, p0, p1, alpha, latest)
    assert alpha / 10 <= target <= 10 * alpha
    if not math.isfinite(l1):
        assert (target, over) == (alpha / 10, False)
    elif p0 <= 0:
        assert (target, over) == (alpha, False)
    else:
        higher = l1 > l0 and abs(l0 - l1) > 1e-4 * max(l0, l1)
        longer = p1 > p0 / 2 and not higher
        assert over == (latest == (-1 if longer else 1))
        # Once it is over, the one of the two step sizes that is too short.
        assert target == pytest.approx(alpha * ((1 if over else 10) if longer else 0.1))
    stretched = search(l0, l1, p0 / scale, p1 / scale, alpha * scale, latest)
    assert stretched == (pytest.approx(target * scale, rel=1e-9), over)


@pytest.mark.parametrize("mode", ACME_MODES)
def test_a_search_moves_nothing_and_starts_alike_from_twelve_decades(mode) -> None:
    """Both ends differ by 10¹²; the step sizes that are found, by at most the tenfold of one look-ahead."""
    found = []
    for lr in (1e-6, 1e-3, 1.0, 1e3, 1e6):
        model, data = net(), batches()
        weights = vector(model.parameters())
        optimizer = Acme(
            model, lr, **mode, rho=0.1, bias_correction=mode["adam"], search_steps=30, total_steps=None
        )
        group = optimizer.param_groups[0]
        steps = 0
        while True:
            train(model, optimizer, data, 1, first=steps)
            steps += 1
            if optimizer.report.applied != 0 or not group["search_left"]:
                break
            assert torch.equal(vector(model.parameters()), weights)
            assert optimizer.report.evaluations == 2 + mode["asam"]
        assert group["search_left"] == 0 and steps <= 12
        found.append(group["step_size"])
    assert max(found) <= 10 * min(found) * (1 + 1e-9)


def test_a_search_ends_at_its_last_step() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 1e-12, acme=True, search_steps=3, total_steps=None)
    weights = vector(model.parameters())
    train(model, optimizer, data, 3)
    assert torch.equal(vector(model.parameters()), weights)
    assert optimizer.param_groups[0]["step_size"] == pytest.approx(1e-9)
    train(model, optimizer, data, 1)
    assert not torch.equal(vector(model.parameters()), weights)


def test_a_search_survives_a_look_ahead_that_is_not_finite() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 5.0, acme=True, search_steps=5, total_steps=None)
    weights = vector(model.parameters())
    optimizer.step(
        make_closure(model, optimizer, data[0], lambda call, loss: loss if call == 1 else loss * math.inf)
    )
    assert optimizer.report.decision is Decision.NON_FINITE
    assert optimizer.param_groups[0]["step_size"] == 0.5
    assert torch.equal(vector(model.parameters()), weights)


def test_a_state_from_the_middle_of_a_training_is_not_searched() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 1e-3, acme=True)
    train(model, optimizer, data, 3)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        for name in ("search_steps", "search_left", "search_latest"):
            del group[name]
    other = Acme(net(), 1e-3, acme=True, search_steps=10)
    other.load_state_dict(state)
    assert other.param_groups[0]["search_left"] == 0


def test_exceptions_undo_a_step_that_keeps() -> None:
    model, data = net(dropout=0.2), batches()
    optimizer = kept(model, data, acme=True, adam=True)
    before = snapshot(model, optimizer)
    with pytest.raises(FloatingPointError):
        optimizer.step(make_closure(model, optimizer, data[0], lambda call, loss: loss * math.nan))
    assert_same(before, snapshot(model, optimizer), ignore=("rng",))


def test_parts_say_what_is_due() -> None:
    by_closure, by_parts, data = net(), net(), batches()
    options = dict(acme=True, asam=True, rho=0.1, adapt_steps=4)
    first, second = Acme(by_closure, 0.5, **options), Acme(by_parts, 0.5, **options)
    for i in range(8):
        train(by_closure, first, data, 1, first=i)
        assert second.next_part is None
        closure = make_closure(by_parts, second, data[i % len(data)])
        with second.step_in_parts():
            parts = []
            while second.next_part is not None:
                parts.append(second.next_part)
                with torch.enable_grad():
                    loss = closure()
                getattr(second, parts[-1])(loss)
        assert parts == (["ascend", "look", "leap"] if i < 4 else ["ascend", "leap"])
        assert second.report == first.report
    assert torch.equal(vector(by_closure.parameters()), vector(by_parts.parameters()))


def test_an_older_state_without_the_options_loads() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.01, acme=True)
    train(model, optimizer, data, 3)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        for name in (
            "gain",
            "adapt_steps",
            "steps",
            "search_steps",
            "search_left",
            "unbiased_squares",
        ):
            del group[name]
    again = net()
    again.load_state_dict(model.state_dict())
    resumed = Acme(again, 0.01, acme=True)
    resumed.load_state_dict(state)
    assert train(again, resumed, data, 5, first=3) == train(model, optimizer, data, 5, first=3)
