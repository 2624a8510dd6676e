"""bfloat16 autocast needs nothing; float16 with GradScaler goes through `step(closure, scaler=…)`, else not at all."""

import math

import pytest
import torch
from common import all_modes, assert_same, batches, evaluations, net, snapshot, start, train
from torch import nn

from acme import Acme, Decision


def scaled_closure(model, optimizer, scaler, batch, dtype=None, spoil=lambda call, loss: loss):
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        scaler.scale(spoil(calls, loss)).backward()
        return loss

    return closure


@all_modes
def test_bfloat16_autocast_needs_nothing(mode) -> None:
    """The first step's loss and slopes are those of float32 up to bfloat16's precision; training works."""
    reports, losses = [], []
    for dtype in (None, torch.bfloat16):
        model, data = net(torch.float32), batches(dtype=torch.float32)
        optimizer = Acme(model, start(mode), **mode)
        off = torch.amp.GradScaler("cpu", enabled=False)
        losses.append(
            [
                optimizer.step(scaled_closure(model, optimizer, off, data[i % 4], dtype)).item()
                for i in range(2)
            ]
        )
        reports.append(optimizer.report)
        losses[-1] += [
            optimizer.step(scaled_closure(model, optimizer, off, data[i % 4], dtype)).item()
            for i in range(40)
        ]
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=0.03)
    if mode["acme"]:
        assert reports[1].slope == pytest.approx(reports[0].slope, rel=0.1)
    assert sum(losses[1][-4:]) < 0.9 * sum(losses[1][:4])
    assert all(p.dtype == torch.float32 for p in model.parameters())


@all_modes
def test_scaled_gradients_change_nothing(mode) -> None:
    """A scale that is a power of two is exact: the same bits as without, and one update of the scaler a step."""
    results = []
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=7)
    for used in (None, scaler):
        model, data = net(torch.float32), batches(dtype=torch.float32)
        optimizer = Acme(model, start(mode), **mode)
        for i in range(10):
            if used is None:
                train(model, optimizer, data, 1, i)
            else:
                optimizer.step(scaled_closure(model, optimizer, used, data[i % 4]), scaler=used)
                used.update()
        results.append(snapshot(model, optimizer))
    assert_same(*results)
    assert scaler.get_scale() == 2.0**17  # it grew once, after seven steps


@all_modes
def test_overflow(mode) -> None:
    """At the start and at ASAM's point the step is skipped; at the look-ahead it is NON_FINITE. The scale halves."""
    for call in range(1, evaluations(mode) + 1):
        model, data = net(torch.float32, dropout=0.2), batches(dtype=torch.float32)
        optimizer = Acme(model, start(mode), **mode)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        optimizer.step(scaled_closure(model, optimizer, scaler, data[0]), scaler)
        scaler.update()
        before = snapshot(model, optimizer)
        closure = scaled_closure(
            model, optimizer, scaler, data[1],
            spoil=lambda number, loss, call=call: loss * 1e38 if number == call else loss,
        )  # fmt: skip
        optimizer.step(closure, scaler=scaler)
        scaler.update()
        assert scaler.get_scale() == 2.0**15
        assert optimizer.report.decision is Decision.NON_FINITE and optimizer.report.applied == 0
        after = snapshot(model, optimizer)
        weights = [name for name, _ in model.named_parameters()]
        assert all(torch.equal(before["model"][name], after["model"][name]) for name in weights)
        if not (mode["acme"] and call == evaluations(mode)):
            assert optimizer.report.evaluations == call
            assert_same(before, after, ignore=("model", "rng"))
        else:
            assert optimizer.param_groups[0]["step_size"] == before["groups"][0]["step_size"] * 0.9
        assert math.isfinite(optimizer.step(scaled_closure(model, optimizer, scaler, data[2]), scaler))


def test_overflow_in_parts_and_at_the_first_gradient() -> None:
    model, data = net(torch.float32), batches(dtype=torch.float32)
    optimizer = Acme(model, 0.1, acme=True, asam=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = snapshot(model, optimizer)
    evaluate = scaled_closure(
        model, optimizer, scaler, data[0], spoil=lambda n, loss: loss * 1e38 if n == 2 else loss
    )
    with optimizer.step_in_parts(scaler):
        optimizer.ascend(evaluate())
        optimizer.look(evaluate())
        optimizer.leap(evaluate())
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert_same(before, snapshot(model, optimizer), ignore=("model", "rng"))
    assert not optimizer.state_dict()["state"]


def test_non_finite_loss_is_an_error_with_a_scaler_too() -> None:
    model, data = net(torch.float32), batches(dtype=torch.float32)
    optimizer = Acme(model, 0.1, acme=True)
    scaler = torch.amp.GradScaler("cpu")
    closure = scaled_closure(model, optimizer, scaler, data[0])
    with pytest.raises(FloatingPointError, match="loss"):
        optimizer.step(lambda: closure() * math.nan, scaler)
    optimizer.step(closure, scaler)  # and goes on without an update in between


def test_forgotten_update_is_an_error() -> None:
    model, data = net(torch.float32), batches(dtype=torch.float32)
    optimizer = Acme(model, 0.1)
    scaler = torch.amp.GradScaler("cpu")
    optimizer.step(scaled_closure(model, optimizer, scaler, data[0]), scaler)
    with pytest.raises(RuntimeError, match="since the last update"):
        optimizer.step(scaled_closure(model, optimizer, scaler, data[0]), scaler)


@all_modes
@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("overflow", [False, True])
def test_scaler_step_is_refused(mode, unscaled, overflow) -> None:
    """With and without a closure, before any evaluation; the right way then still works."""
    model, data = net(torch.float32), batches(dtype=torch.float32)
    optimizer = Acme(model, start(mode), **mode)
    scaler = torch.amp.GradScaler("cpu")
    closure = scaled_closure(
        model, optimizer, scaler, data[0], spoil=lambda n, loss: loss * 1e38 if overflow else loss
    )
    for arguments in ((), (closure,)):
        closure()
        if unscaled:
            scaler.unscale_(optimizer)
        before = snapshot(model, optimizer)
        with pytest.raises(RuntimeError, match=r"optimizer.step\(closure, scaler=scaler\)"):
            scaler.step(optimizer, *arguments)
        assert_same(before, snapshot(model, optimizer))
        scaler.update()
    optimizer.step(scaled_closure(model, optimizer, scaler, data[0]), scaler=scaler)
    scaler.update()


def test_disabled_scaler_passes_the_closure_on() -> None:
    """As in code that switches float16 off by `enabled=False`."""
    model, data = net(torch.float32), batches(dtype=torch.float32)
    optimizer = Acme(model, 0.1, acme=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    closure = scaled_closure(model, optimizer, scaler, data[0])
    for _ in range(3):
        scaler.step(optimizer, closure)
        optimizer.step(closure, scaler)
        scaler.update()
    assert optimizer.param_groups[0]["t"] == 7


@all_modes
def test_float16_autocast_trains(mode) -> None:
    model, data = net(torch.float32), batches(dtype=torch.float32)
    optimizer = Acme(model, start(mode), **mode)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for i in range(60):
        losses.append(
            optimizer.step(
                scaled_closure(model, optimizer, scaler, data[i % 4], torch.float16), scaler
            ).item()
        )
        scaler.update()
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
