"""A step in parts is the step of the closure, its order is checked, and an exception in between undoes it."""

import math
import warnings

import pytest
import torch
from common import all_modes, assert_same, batches, evaluations, make_closure, net, snapshot, start, train

from acme import Acme


def step_in_parts(optimizer: Acme, evaluate, mode: dict) -> torch.Tensor:
    with optimizer.step_in_parts():
        first = loss = evaluate()
        if mode["asam"]:
            optimizer.ascend(loss)
            loss = evaluate()
        if mode["acme"]:
            optimizer.look(loss)
            loss = evaluate()
        optimizer.leap(loss)
    return first


@all_modes
def test_same_as_the_closure(mode) -> None:
    """Weights, buffers, averages, groups, generators and reports over 8 steps with dropout, bit for bit."""
    results = []
    for in_parts in (False, True):
        model, data = net(dropout=0.3), batches()
        optimizer = Acme(model, start(mode), **mode, weight_decay=0.01)
        torch.manual_seed(3)
        losses = []
        for i in range(8):
            evaluate = make_closure(model, optimizer, data[i % 4])
            losses.append(step_in_parts(optimizer, evaluate, mode) if in_parts else optimizer.step(evaluate))
        results.append((snapshot(model, optimizer), [float(x) for x in losses], optimizer.report))
    assert_same(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


@all_modes
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_exception_between_the_parts(mode, error) -> None:
    """Before and after each evaluation and part: everything as before the step."""
    for place in range(2 * evaluations(mode)):
        model, data = net(dropout=0.3), batches()
        optimizer = Acme(model, start(mode), **mode)
        train(model, optimizer, data, 2)
        before, report = snapshot(model, optimizer), optimizer.report
        places = iter(range(100))

        def point(place=place, places=places):
            if next(places) == place:
                raise error

        evaluate = make_closure(model, optimizer, data[2])
        with pytest.raises(type(error)), optimizer.step_in_parts():
            point()
            loss = evaluate()
            for part, on in (("ascend", mode["asam"]), ("look", mode["acme"])):
                if on:
                    point()
                    getattr(optimizer, part)(loss)
                    point()
                    loss = evaluate()
            point()
            optimizer.leap(loss)
        assert_same(before, snapshot(model, optimizer))
        assert optimizer.report is report
        train(model, optimizer, data, 2)


@all_modes
def test_wrong_order(mode) -> None:
    """Each part where another is due, a part too many, and a block that is left early."""
    order = ["ascend"] * mode["asam"] + ["look"] * mode["acme"] + ["leap"]
    for length in range(len(order) + 1):
        due = order[length] if length < len(order) else None
        for wrong in {"ascend", "look", "leap", "end"} - {due or "end"}:
            model, data = net(), batches()
            optimizer = Acme(model, start(mode), **mode)
            train(model, optimizer, data, 1)
            before = snapshot(model, optimizer)
            evaluate = make_closure(model, optimizer, data[1])
            with pytest.raises(RuntimeError, match=due or "end of the block"), optimizer.step_in_parts():
                for part in order[:length]:
                    getattr(optimizer, part)(evaluate())
                if wrong != "end":
                    getattr(optimizer, wrong)(evaluate())
            if due is not None:  # else the step was done, and stays
                assert_same(before, snapshot(model, optimizer))
            train(model, optimizer, data, 1)


def test_parts_outside_a_step_and_steps_within_one() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1, acme=True)
    for part in (optimizer.ascend, optimizer.look, optimizer.leap):
        with pytest.raises(RuntimeError, match="step_in_parts"):
            part(1.0)
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="in progress"), optimizer.step_in_parts():
        optimizer.look(make_closure(model, optimizer, data[0])())
        optimizer.step(make_closure(model, optimizer, data[0]))
    assert_same(before, snapshot(model, optimizer))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="left before look"), optimizer.step_in_parts():
            break
    assert_same(before, snapshot(model, optimizer))


def test_a_step_whose_failure_is_caught_within_is_no_step() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1, acme=True)
    before = snapshot(model, optimizer)
    undone, failed = pytest.raises(RuntimeError, match="left before look"), pytest.raises(FloatingPointError)
    with undone, optimizer.step_in_parts(), failed:
        optimizer.look(make_closure(model, optimizer, data[0])() * math.nan)
    assert_same(before, snapshot(model, optimizer))
    train(model, optimizer, data, 1)


def test_exception_after_the_leap_keeps_the_step() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1)
    with pytest.raises(ZeroDivisionError), optimizer.step_in_parts():
        optimizer.leap(make_closure(model, optimizer, data[0])())
        after = snapshot(model, optimizer)
        raise ZeroDivisionError
    assert_same(after, snapshot(model, optimizer))
    assert optimizer.param_groups[0]["t"] == 2


def test_hooks_and_schedulers_see_one_step() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1, acme=True, asam=True)
    calls = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: calls.append("before"))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: calls.append("after"))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_in_parts(optimizer, make_closure(model, optimizer, data[0]), {"asam": True, "acme": True})
        scheduler.step()
    assert calls == ["before", "after"]
    assert optimizer.param_groups[0]["lr"] == 0.05


@all_modes
@pytest.mark.filterwarnings("ignore:After the closure no parameter")
def test_nothing_to_do(mode) -> None:
    """Without a gradient the parts do nothing, in their order."""
    model = net()
    optimizer = Acme(model, start(mode), **mode)
    before = snapshot(model, optimizer)
    step_in_parts(optimizer, lambda: 1.0, mode)
    assert_same(before, snapshot(model, optimizer))
    assert optimizer.report.applied == 0 and optimizer.report.evaluations == evaluations(mode)
