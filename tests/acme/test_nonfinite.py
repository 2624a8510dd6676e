"""NaN and Inf in loss or gradient, at each evaluation, in each mode: section 6 of the specification, bit for bit.

And exceptions of the closure's own, which leave everything as it was as well.
"""

import math

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
)

from acme import Acme, Decision


@pytest.fixture(params=[False, True], ids=("together", "in pieces"), autouse=True)
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parameters as the optimizer takes them, together, and as it takes large ones."""
    if request.param:
        monkeypatch.setattr("acme.acme.PIECE", 3)
        monkeypatch.setattr("acme.acme.ALONE", 2)


bad_values = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
places = pytest.mark.parametrize("place", ["loss", "gradient"])


def spoiler(model, call_to_spoil: int, value: float, place: str):
    def spoil(call, loss):
        if call != call_to_spoil:
            return loss
        if place == "loss":
            return loss.detach() + value
        list(model.parameters())[2].grad.view(-1)[1] = value
        return loss

    return spoil


@all_modes
@bad_values
@places
@pytest.mark.parametrize("steps_before", [0, 3])
def test_before_the_look_ahead(mode, value, place, steps_before) -> None:
    """At the start, and at ASAM's point: an error, and everything as before the step."""
    for call in range(1, evaluations(mode) + (not mode["acme"])):
        model, data = net(dropout=0.3), batches()
        optimizer = Acme(model, start(mode), **mode)
        train(model, optimizer, data, steps_before)
        before = snapshot(model, optimizer)
        report = optimizer.report
        with pytest.raises(FloatingPointError, match="start" if call == 1 else "ASAM"):
            optimizer.step(make_closure(model, optimizer, data[0], spoiler(model, call, value, place)))
        assert_same(before, snapshot(model, optimizer))
        assert optimizer.report is report
        train(model, optimizer, data, 2)  # and training goes on


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode["acme"]], ids=mode_id)
@bad_values
@places
@pytest.mark.parametrize("steps_before", [0, 3])
def test_at_the_look_ahead(mode, value, place, steps_before) -> None:
    """Weights restored, m ← (1 - β1)·m after its update, α ← β1·α, t restarts, the annealing goes on."""
    model, data = net(dropout=0.3), batches()
    optimizer = Acme(model, start(mode), **mode, bias_correction=mode["adam"])
    twin = net(dropout=0.3)
    other = Acme(twin, start(mode), **mode, bias_correction=mode["adam"])
    torch.manual_seed(5)
    train(model, optimizer, data, steps_before)
    torch.manual_seed(5)
    train(twin, other, data, steps_before)
    weights = [p.detach().clone() for p in model.parameters()]
    alpha = optimizer.param_groups[0]["step_size"]
    torch.manual_seed(6)
    optimizer.step(make_closure(model, optimizer, data[3], spoiler(model, evaluations(mode), value, place)))

    # The averages as the first update leaves them: those of a step without `acme` from the same state.
    other.load_state_dict({**other.state_dict(), "param_groups": [
        {**group, "acme": False} for group in other.state_dict()["param_groups"]
    ]})  # fmt: skip
    torch.manual_seed(6)
    other.step(make_closure(twin, other, data[3]))
    for p, q, w in zip(model.parameters(), twin.parameters(), weights, strict=True):
        assert torch.equal(p, w)
        assert torch.equal(optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"] * (1 - 0.9))
        if mode["adam"]:
            assert torch.equal(optimizer.state[p]["exp_avg_sq"], other.state[q]["exp_avg_sq"])
    for buffer, expected in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, expected)
    group = optimizer.param_groups[0]
    assert group["step_size"] == alpha * 0.9
    assert group["t"] == 1
    assert group["annealing_step"] == steps_before + 1
    report = optimizer.report
    assert report.decision is Decision.NON_FINITE == -1
    assert report.applied == 0 and report.evaluations == evaluations(mode)
    losses = train(model, optimizer, data, 10)
    assert all(map(math.isfinite, losses))


def test_step_size_that_is_far_too_large_recovers() -> None:
    """From a start that overflows the loss, α falls until the look-ahead is finite, then adapts."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Acme([weight], 1e30, acme=True)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    decisions = []
    for _ in range(1000):
        optimizer.step(closure)
        decisions.append(optimizer.report.decision)
    assert decisions[0] is Decision.NON_FINITE and decisions[-1] is not Decision.NON_FINITE
    assert weight.abs().max() < 0.1


@all_modes
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_exceptions_undo_the_step(mode, error, steps_before) -> None:
    for call in range(1, evaluations(mode) + 1):
        model, data = net(dropout=0.3), batches()
        optimizer = Acme(model, start(mode), **mode)
        train(model, optimizer, data, steps_before)
        before = snapshot(model, optimizer)

        def spoil(number, loss, call=call):
            if number == call:
                raise error
            return loss

        with pytest.raises(type(error)):
            optimizer.step(make_closure(model, optimizer, data[0], spoil))
        assert_same(before, snapshot(model, optimizer))
