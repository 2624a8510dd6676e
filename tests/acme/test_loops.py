"""Loops that people have: accumulation, schedulers, compiled models, warnings, checkpoint functions of torch."""

import shutil
import warnings

import pytest
import torch
from common import (
    MODES,
    all_modes,
    assert_same,
    batches,
    loss_closure,
    make_closure,
    mode_id,
    net,
    snapshot,
    start,
    train,
)
from torch import nn
from torch.optim import lr_scheduler

from acme import Acme


@all_modes
def test_accumulation_is_the_large_batch(mode) -> None:
    """A closure over four micro-batches, against one over their union, over 15 steps."""
    results = []
    for micro in (1, 4):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        optimizer = Acme(model, start(mode), **mode)
        for i in range(15):
            x, y = batches()[i % 4]

            def closure(model=model, optimizer=optimizer, x=x, y=y, micro=micro):
                optimizer.zero_grad()
                total = 0.0
                for part, target in zip(x.chunk(micro), y.chunk(micro), strict=True):
                    loss = nn.functional.cross_entropy(model(part), target) / micro
                    loss.backward()
                    total += loss.detach()
                return total

            optimizer.step(closure)
        results.append([p.detach() for p in model.parameters()])
        results.append(optimizer.param_groups[0]["step_size"])
    assert results[3] == pytest.approx(results[1], rel=1e-9)
    torch.testing.assert_close(results[2], results[0], rtol=1e-9, atol=1e-12)


SCHEDULERS = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "warm-up": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 6),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=14, cycle_momentum=False),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.3, patience=0, threshold=0.5),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.8)],
        milestones=[4],
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True])
def test_schedulers_scale_the_applied_step_and_never_compound(name, tensor) -> None:
    """applied = γ·(α or σ)·lr/(initial lr) at each step, whatever was applied before; α is not touched."""
    model, data = net(), batches()
    optimizer = Acme(model, torch.tensor(0.1) if tensor else 0.1, acme=True, total_steps=None)
    scheduler = SCHEDULERS[name](optimizer)
    group = optimizer.param_groups[0]
    gamma = 2 * (1 - 0.9) / (1 + 0.9) * (1 + 2 * 0.9) / (2 - 0.9)
    factors = []
    for i in range(12):
        alpha, factor = group["step_size"], float(group["lr"]) / 0.1
        loss = train(model, optimizer, data, 1, i)[0]
        report = optimizer.report
        assert report.step_size == alpha
        if report.look_ahead_loss <= report.loss:
            assert report.applied == pytest.approx(gamma * alpha * factor, rel=1e-6)
        else:
            assert report.applied <= gamma * alpha * factor * (1 + 1e-6)
        assert 0.49 * alpha < group["step_size"] < 2.01 * alpha
        factors.append(factor)
        scheduler.step(*([loss] if name == "plateau" else []))
    assert len(set(factors)) > 2, "the scheduler moved lr"


def test_schedule_leaves_the_search_alone() -> None:
    """A constant factor on lr from the first step on: the same as a factor on what is applied, step by step."""
    model, data = net(), batches()
    optimizer = Acme(model, 0.1, acme=True, total_steps=None)
    before = snapshot(model, optimizer)
    train(model, optimizer, data, 1)
    full, weights = optimizer.report, [p.detach().clone() for p in model.parameters()]
    other = net()
    scheduled = Acme(other, 0.1, acme=True, total_steps=None)
    scheduled.param_groups[0]["lr"] = 0.05
    train(other, scheduled, data, 1)
    assert scheduled.report.applied == pytest.approx(full.applied / 2)
    assert scheduled.param_groups[0]["step_size"] == optimizer.param_groups[0]["step_size"]
    for name, w, p in zip(before["model"], weights, other.parameters(), strict=False):
        torch.testing.assert_close(
            p - before["model"][name], (w - before["model"][name]) / 2
        ) if "0." in name else 0


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("mode", [MODES[0b1000], MODES[0b1110]], ids=mode_id)
def test_compiled_model(mode, backend) -> None:
    """The same numbers up to rounding as without torch.compile, and no graph is compiled after the first step."""
    import torch._dynamo as dynamo

    if backend == "inductor" and shutil.which("c++") is None:
        pytest.skip("no C++ compiler, which inductor needs")
    dynamo.reset()
    results = []
    for compiled in (False, True):
        model, data = net(), batches()
        run = torch.compile(model, backend=backend) if compiled else model
        optimizer = Acme(run, 0.05, **mode)
        losses = train(run, optimizer, data, 1)
        graphs = dynamo.utils.counters["stats"]["unique_graphs"]
        with dynamo.config.patch(error_on_recompile=True):
            losses += train(run, optimizer, data, 12, 1)
        assert dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        results.append(losses)
    assert graphs > 0
    assert results[1] == pytest.approx(results[0], rel=1e-9)


def test_compiled_autograd() -> None:
    """The whole closure, backward included, under torch.compile with compiled autograd."""
    import torch._dynamo as dynamo

    dynamo.reset()
    results = []
    for compiled in (False, True):
        model, data = net(), batches()
        optimizer = Acme(model, 0.05, acme=True)

        def evaluate(x, y, model=model):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        run = torch.compile(evaluate, backend="aot_eager") if compiled else evaluate
        losses = []
        with dynamo.config.patch(compiled_autograd=compiled):
            for i in range(6):

                def closure(i=i, run=run, optimizer=optimizer, data=data):
                    optimizer.zero_grad()
                    return run(*data[i % 4])

                losses.append(optimizer.step(closure).item())
        results.append(losses)
    assert results[1] == pytest.approx(results[0], rel=1e-9)


# Warnings -----------------------------------------------------------------------------------------------


def clipping_closure(model, optimizer, batch, norm: float):
    evaluate = make_closure(model, optimizer, batch)

    def closure():
        loss = evaluate()
        nn.utils.clip_grad_norm_(model.parameters(), norm)
        return loss

    return closure


@pytest.mark.parametrize("adam", [False, True])
def test_warns_once_of_clipping_in_the_closure(adam) -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 1e-3, acme=True, adam=adam)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(60):
            optimizer.step(clipping_closure(model, optimizer, data[i % 4], 0.05))
    assert len(caught) == 1 and "max_grad_norm" in str(caught[0].message)


@all_modes
@pytest.mark.parametrize("norm", [None, 0.05])
def test_no_warning_without_a_reason(mode, norm) -> None:
    """Ordinary training, clipping in the optimizer, and full batches with tiny steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (1, 4):
            model, data = net(), batches(count)
            train(model, Acme(model, start(mode), **mode, max_grad_norm=norm), data, 60)


def test_no_warning_where_the_norm_is_constant() -> None:
    """Σ|w| and a plane have gradients of one norm; their slopes are true."""

    class Norm(nn.Module):
        def __init__(self, power: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(1, 2, 40, dtype=torch.float64))
            self.power = power

        def forward(self):
            return self.weight.abs().sum() if self.power else 1000 + self.weight.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for power in (0, 1):
            model = Norm(power)
            optimizer = Acme(model, 1e-3, acme=True)
            for _ in range(100):
                optimizer.step(loss_closure(model, optimizer))


def test_warns_once_of_steps_past_the_end() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1, acme=True, total_steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, data, 5)
    with pytest.warns(UserWarning, match="total_steps=5") as caught:
        train(model, optimizer, data, 5)
    assert len(caught) == 1


# Hooks and options ----------------------------------------------------------------------------------------


def test_state_dict_hooks_run_as_in_torch() -> None:
    """The same hooks in the same order as on torch's SGD, and the last one sees float32 averages."""
    orders, dtypes = [], []
    for kind in (torch.optim.SGD, Acme):
        model, data = net(torch.bfloat16), batches(dtype=torch.bfloat16)
        optimizer = kind(list(model.parameters()), 0.1)
        calls = []
        optimizer.register_state_dict_pre_hook(lambda opt, calls=calls: calls.append("state pre"))
        optimizer.register_state_dict_post_hook(lambda opt, state, calls=calls: calls.append("state post"))
        optimizer.register_load_state_dict_pre_hook(lambda opt, state, calls=calls: calls.append("load pre"))
        optimizer.register_load_state_dict_post_hook(lambda opt, calls=calls: calls.append("load post"))
        if kind is Acme:
            train(model, optimizer, data, 2)
            optimizer.register_load_state_dict_post_hook(
                lambda opt: dtypes.extend(s["exp_avg"].dtype for s in opt.state.values())
            )
        optimizer.load_state_dict(optimizer.state_dict())
        orders.append(calls)
    assert orders[0] == orders[1] == ["state pre", "state post", "load pre", "load post"]
    assert set(dtypes) == {torch.float32}


@pytest.mark.parametrize(
    "name",
    ["maximize", "fused", "foreach", "momentum", "dampening", "eps", "amsgrad"],
)
def test_options_of_other_optimizers_are_refused_in_groups(name) -> None:
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=name):
        Acme([{"params": [weight], name: 0.5}])
    with pytest.raises(TypeError, match=name):
        Acme([weight], **{name: 0.5})
    Acme([{"params": [weight], "name": "head", "maximize": False}])


def test_why_averages_of_bfloat16_are_float32() -> None:
    """An average that moves by a thousandth stands still in bfloat16, and follows in float32."""
    moved = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(100):
        moved.mul_(0.999).add_(torch.full((1,), 3.0, dtype=torch.bfloat16), alpha=1e-3)
    assert moved == 1
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = Acme([weight], 0.0, betas=(0.9, 0.999), adam=True)
    for gradient in [1.0] + 100 * [3.0]:

        def closure(gradient=gradient):
            weight.grad = torch.full((1,), gradient, dtype=torch.bfloat16)
            return gradient

        optimizer.step(closure)
    assert optimizer.state[weight]["exp_avg_sq"].item() > 1.3


# torch.distributed.checkpoint, in one process ---------------------------------------------------------------


@all_modes
def test_checkpoint_functions_only_create_state(mode) -> None:
    """get_optimizer_state_dict before the first step: weights, groups and what follows are as without it."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    results = []
    for called in (False, True):
        model, data = net(), batches()
        optimizer = Acme(model, start(mode), **mode)
        before = snapshot(model, optimizer)
        if called:
            get_optimizer_state_dict(model, optimizer)
            assert len(optimizer.state) == len(list(model.parameters()))
            assert_same(before, snapshot(model, optimizer), ignore=("state",))
            assert optimizer.report is None
            fresh = Acme(model, start(mode), **mode)
            fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh
        train(model, optimizer, data, 6)
        results.append(snapshot(model, optimizer))
    assert_same(*results)


@all_modes
@pytest.mark.parametrize("flat", [False, True])
def test_checkpoint_functions_round_trip(mode, flat) -> None:
    """Saved after 5 steps, loaded into a fresh optimizer, which then continues bit for bit."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, data = net(), batches()
    optimizer = Acme(model, start(mode), **mode, bias_correction=mode["adam"])
    train(model, optimizer, data, 5)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    other = net()
    other.load_state_dict(model.state_dict())
    fresh = Acme(other, start(mode), **mode, bias_correction=mode["adam"])
    set_optimizer_state_dict(other, fresh, saved, options=options)
    train(model, optimizer, data, 5, 5)
    train(other, fresh, data, 5, 5)
    assert_same(snapshot(model, optimizer), snapshot(other, fresh))


def test_without_a_closure_a_real_step_is_still_an_error() -> None:
    model, data = net(), batches()
    for lr, zero in ((0.1, True), (0.0, False)):
        optimizer = Acme(model, lr, acme=True)
        make_closure(model, optimizer, data[0])()
        if zero:
            optimizer.zero_grad(set_to_none=False)
        with pytest.raises(TypeError, match="closure"):
            optimizer.step()
        optimizer.zero_grad()
        with pytest.raises(TypeError, match="closure"):
            optimizer.step()
        assert not optimizer.state
