"""Parameters of every kind and gradients that are not there."""

import pytest
import torch
from common import (
    all_modes,
    assert_same,
    batches,
    loss_closure,
    make_closure,
    net,
    snapshot,
    start,
    train,
    vector,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from acme import Acme


class Partly(nn.Module):
    """`used` always gets a gradient, `late` from the moment `wait` ends, `never` never; `zero` gets zeros."""

    def __init__(self, dtype=torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name in ("used", "late", "zero", "never"):
            values = torch.randn(3, 4, generator=generator, dtype=torch.float64).to(dtype)
            self.register_parameter(f"{name}_weight", nn.Parameter(values))
        self.scalar = nn.Parameter(torch.tensor(0.5, dtype=dtype))  # zero-dimensional
        self.empty = nn.Parameter(torch.zeros(0, 4, dtype=dtype))
        self.wait = True

    def forward(self):
        loss = ((self.used_weight - 1) ** 2).mean() + (self.scalar - 2) ** 2 + self.empty.sum()
        loss = loss + 0 * self.zero_weight.sum()
        return loss if self.wait else loss + ((self.late_weight + 1) ** 2).mean()


@all_modes
def test_absent_gradients_take_no_part(mode) -> None:
    model = Partly()
    model.zero_weight.requires_grad_(False)
    optimizer = Acme(model, start(mode), **mode, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = [optimizer.step(loss_closure(model, optimizer)).item() for _ in range(10)]
    assert losses[-1] < losses[0]
    for name, p in model.named_parameters():
        moved = not torch.equal(p, before[name])
        assert moved == (name in ("used_weight", "scalar")), name
        assert (p in optimizer.state) == (moved or name == "empty"), name

    # The same trajectory as a model that has only what took part.
    alone = Partly()
    parts = [(name, p) for name, p in alone.named_parameters() if name in ("used_weight", "scalar")]
    other = Acme(parts, start(mode), **mode, weight_decay=0.1)
    assert losses == [other.step(loss_closure(alone, other)).item() for _ in range(10)]


@all_modes
def test_gradients_of_zeros_are_gradients(mode) -> None:
    """They move a parameter as its averages and its decay would, and change nothing for the others."""
    results = []
    for zeros in (False, True):
        model = Partly()
        model.zero_weight.requires_grad_(zeros)
        optimizer = Acme(model, start(mode), **mode, weight_decay=0.1)
        before, factor = model.zero_weight.detach().clone(), 1.0
        for _ in range(6):
            optimizer.step(loss_closure(model, optimizer))
            factor *= 1 - 0.1 * optimizer.report.applied
        # ASAM's norm, too, counts zeros: nothing else does.
        results.append(vector([model.used_weight, model.scalar]))
        torch.testing.assert_close(model.zero_weight.detach(), before * (factor if zeros else 1))
        assert (model.zero_weight in optimizer.state) == zeros
    assert not any(value.any() for value in optimizer.state[model.zero_weight].values())
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


@all_modes
@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients_that_become_zeros(mode, unbiased) -> None:
    """A parameter goes on along its average, which decays, as in torch's Adam and SGD with momentum."""
    model, data = net(), batches()
    unbiased = dict(bias_correction=True, unbiased_squares=True) if unbiased and mode["adam"] else {}
    optimizer = Acme(model, 0.1 * start(mode), **mode, **unbiased)
    train(model, optimizer, data, 3)
    average = optimizer.state[model[4].weight]["exp_avg"].clone()

    def zeros(call, loss):
        model[4].weight.grad.zero_()
        return loss

    moved = model[4].weight.detach().clone()
    optimizer.step(make_closure(model, optimizer, data[0], zeros))
    assert not torch.equal(moved, model[4].weight)
    updates = 1 + (mode["acme"] and optimizer.report.look_ahead_loss < optimizer.report.loss)
    torch.testing.assert_close(optimizer.state[model[4].weight]["exp_avg"], average * 0.9**updates)


@all_modes
def test_late_first_gradient(mode) -> None:
    model = Partly()
    optimizer = Acme(model, start(mode), **mode, bias_correction=mode["adam"])
    for step in range(20):
        model.wait = step < 5
        late = model.late_weight.detach().clone()
        optimizer.step(loss_closure(model, optimizer))
        assert torch.equal(late, model.late_weight) == (step < 5)
    assert torch.isfinite(vector(model.parameters())).all()
    assert optimizer.param_groups[0]["t"] == 21


@all_modes
def test_gradient_that_pauses(mode) -> None:
    """While it has no gradient a parameter keeps still, averages and all, then goes on."""
    model = Partly()
    model.wait = False
    optimizer = Acme(model, start(mode), **mode)
    for _ in range(3):
        optimizer.step(loss_closure(model, optimizer))
    model.wait = True
    late = model.late_weight.detach().clone()
    average = optimizer.state[model.late_weight]["exp_avg"].clone()
    optimizer.step(loss_closure(model, optimizer))
    assert torch.equal(late, model.late_weight)
    assert torch.equal(average, optimizer.state[model.late_weight]["exp_avg"])
    model.wait = False
    optimizer.step(loss_closure(model, optimizer))
    assert not torch.equal(late, model.late_weight)


@all_modes
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.filterwarnings("ignore:After the closure no parameter")
def test_nothing_to_do_changes_nothing(mode, begun) -> None:
    model, data = net(), batches()
    optimizer = Acme(model, start(mode), **mode)
    if begun:
        train(model, optimizer, data, 3)
    before = snapshot(model, optimizer)

    def closure():
        optimizer.zero_grad()
        return torch.tensor(3.0)

    assert optimizer.step(closure).item() == 3
    assert_same(before, snapshot(model, optimizer))
    assert optimizer.report.decision is None and optimizer.report.applied == 0


def test_zero_gradient_at_the_look_ahead_point() -> None:
    """Exactly at the minimum: nothing to limit, nothing to divide by."""
    weight = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    optimizer = Acme([weight], 1.0, acme=True)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.report.look_ahead_loss == 0 == optimizer.report.look_ahead_slope
    assert torch.isfinite(weight).all() and (weight < 1).all()
    assert torch.equal(optimizer.state[weight]["exp_avg"], torch.full((2,), 0.9, dtype=torch.float64))


@all_modes
@pytest.mark.parametrize("begun", [False, True])
def test_gradients_all_of_zeros(mode, begun) -> None:
    """A plateau: finite, and on along the averages, or nowhere without."""
    model, data = net(), batches()
    optimizer = Acme(model, start(mode), **mode)
    train(model, optimizer, data, 3 * begun)
    before = vector(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = 3 + sum(0 * p.sum() for p in model.parameters())
        loss.backward()
        return loss

    for _ in range(3):
        assert optimizer.step(closure).item() == 3
    assert optimizer.param_groups[0]["t"] == 4 + 3 * begun
    assert torch.equal(vector(model.parameters()), before) == (not begun)
    assert vector(model.parameters()).isfinite().all()


@all_modes
def test_empty_group(mode) -> None:
    one, two = net(), net()
    data = batches()
    first = Acme(one, start(mode), **mode)
    groups = [{"params": []}, {"params": list(two.named_parameters())}, {"params": []}]
    second = Acme(groups, start(mode), **mode)
    assert train(one, first, data, 8) == train(two, second, data, 8)
    assert torch.equal(vector(one.parameters()), vector(two.parameters()))


@all_modes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(mode, dtype) -> None:
    """16-bit parameters train as float32 ones do, with averages in float32."""
    model, data = net(dtype), batches(dtype=dtype)
    optimizer = Acme(model, start(mode), **mode)
    losses = train(model, optimizer, data, 60)
    assert sum(losses[-4:]) < 0.85 * sum(losses[:4])
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    for p in model.parameters():
        assert p.dtype == dtype
        assert all(value.dtype == state_dtype for value in optimizer.state[p].values())


@all_modes
def test_float32_follows_float64(mode) -> None:
    results = []
    for dtype in (torch.float64, torch.float32):
        model, data = net(dtype), batches(dtype=dtype)
        # In front of BatchNorm its gradient is nothing but rounding errors, which Adam scales up.
        model[0].bias.requires_grad_(False)
        train(model, Acme(model, start(mode), **mode), data, 5)
        results.append(vector(model.parameters()).double())
    torch.testing.assert_close(*results, rtol=2e-3, atol=2e-4)


@all_modes
def test_mixed_dtypes_in_one_group(mode) -> None:
    model = Partly(torch.float32)
    model.used_weight = nn.Parameter(model.used_weight.detach().double())
    model.scalar = nn.Parameter(model.scalar.detach().bfloat16())
    optimizer = Acme(model, start(mode), **mode)
    losses = [optimizer.step(loss_closure(model, optimizer)).item() for _ in range(10)]
    assert losses[-1] < losses[0]


@all_modes
def test_layout_does_not_matter(mode) -> None:
    """Transposed, strided, channels-last and zero-dimensional parameters move as contiguous ones do."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64)
              for shape in ((4, 6), (8, 5), (2, 3, 4, 4), ())]  # fmt: skip
    wide = torch.zeros(8, 10, dtype=torch.float64)
    wide[:, ::2] = values[1]
    strange = [
        values[0].t().contiguous().t(),
        wide[:, ::2],
        values[2].to(memory_format=torch.channels_last),
        values[3],
    ]
    assert not any(tensor.is_contiguous() for tensor in strange[:3])
    results = []
    for tensors in (values, strange):
        params = [
            nn.Parameter(t.clone(memory_format=torch.preserve_format) if t is not wide else t)
            for t in tensors
        ]
        if tensors is strange:
            params[1] = nn.Parameter(strange[1].detach())
            assert not params[1].is_contiguous() and not params[0].is_contiguous()
        optimizer = Acme([(f"{i}.weight", p) for i, p in enumerate(params)], 0.01 * start(mode), **mode)
        for _ in range(8):

            def closure(params=params, optimizer=optimizer):
                optimizer.zero_grad()
                loss = sum(((p - 1) ** 4).sum() for p in params)
                loss.backward()
                return loss

            optimizer.step(closure)
        results.append(torch.cat([p.detach().reshape(-1) for p in params]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@all_modes
def test_add_param_group_mid_run(mode) -> None:
    model, data = net(), batches()
    named = list(model.named_parameters())
    optimizer = Acme(named[:4], start(mode), **mode)
    train(model, optimizer, data, 5)
    late = vector(p for _, p in named[4:])
    assert torch.equal(late, vector(net()[4].parameters()))
    optimizer.add_param_group({"params": named[4:], "lr": start(mode) / 2})
    group = optimizer.param_groups[1]
    assert group["step_size"] == start(mode) / 2 and group["t"] == optimizer.param_groups[0]["t"] == 6
    ratio = optimizer.param_groups[0]["step_size"] / group["step_size"]
    losses = train(model, optimizer, data, 15, first=5)
    assert losses[-1] < losses[0]
    assert not torch.equal(late, vector(p for _, p in named[4:]))
    assert optimizer.param_groups[0]["step_size"] / group["step_size"] == pytest.approx(ratio, rel=1e-12)


def test_added_group_need_not_be_named_without_asam() -> None:
    first, second, third = (nn.Parameter(torch.ones(2)) for _ in range(3))
    named = Acme([("first", first)], 0.1, acme=True)
    named.add_param_group({"params": [second]})
    named.add_param_group({"params": []})
    unnamed = Acme([first], 0.1, acme=True)
    unnamed.add_param_group({"params": [("third", third)]})
    unnamed.add_param_group({"params": third.new_zeros(1).requires_grad_()})
    assert [len(o.param_groups) for o in (named, unnamed)] == [3, 3]
    group = {"params": [nn.Parameter(torch.ones(2))], "lr": 0.5}
    assert Acme([group]).param_groups[0]["lr"] == 0.5
    assert set(group) == {"params", "lr"}  # the caller's dict is not written into


@all_modes
@pytest.mark.parametrize("channels_last", [False, True])
def test_pieces_do_not_matter(mode, channels_last, monkeypatch) -> None:
    """However parameters are put together and cut into pieces, the numbers are the same up to the order in which
    sums are added up; gradients of another memory order than their parameters, too."""
    results = []
    for piece, alone in ((1 << 17, 1 << 15), (3, 2), (7, 20)):
        monkeypatch.setattr("acme.acme.PIECE", piece)
        monkeypatch.setattr("acme.acme.ALONE", alone)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)).double()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        optimizer = Acme(model, start(mode), **mode)
        inputs, targets = torch.randn(8, 3, 4, 4, dtype=torch.float64), torch.arange(8) % 3

        def closure(model=model, optimizer=optimizer, inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            weight = model[0].weight
            weight.grad = weight.grad.contiguous()
            return loss

        for _ in range(6):
            optimizer.step(closure)
        results.append(vector(model.parameters()))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-11, atol=1e-13)


@given(
    exponents=st.lists(st.floats(-18, 18), min_size=1, max_size=6),
    mode=st.fixed_dictionaries({n: st.booleans() for n in ("acme", "adam", "asam", "nesterov")}),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
@settings(max_examples=150)
def test_gradients_of_any_size_leave_finite_weights(exponents, mode, dtype) -> None:
    """Sudden gradients from 1e-18 to 1e18 on weights of size 1: limited, never NaN, never Inf."""
    weight = nn.Parameter(torch.ones(4, dtype=dtype))
    direction = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=dtype)
    optimizer = Acme([("weight", weight)], 0.01, **mode)
    for exponent in exponents:

        def closure(exponent=exponent):
            optimizer.zero_grad()
            loss = (torch.tanh(weight) * direction).sum() + 3
            loss.backward()
            weight.grad *= 10.0**exponent
            return loss

        before = weight.detach().clone()
        try:
            optimizer.step(closure)
        except FloatingPointError:
            assert torch.equal(weight, before)
        assert torch.isfinite(weight).all()


def test_frozen_parameters_stay() -> None:
    model, data = net(), batches()
    model[0].requires_grad_(False)
    optimizer = Acme(model, 0.1, acme=True)
    before = vector(model[0].parameters())
    train(model, optimizer, data, 5)
    assert torch.equal(before, vector(model[0].parameters()))


def test_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = Acme(embedding, 0.1)

    def closure():
        optimizer.zero_grad()
        loss = embedding(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match="sparse"):
        optimizer.step(closure)


@all_modes
def test_gradient_missing_at_the_look_ahead_point(mode) -> None:
    """A parameter that an evaluation after the first does not reach counts there as having a zero gradient."""
    model = Partly()
    optimizer = Acme(model, start(mode), **mode)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        model.wait = calls > 1
        return loss_closure(model, optimizer)()

    optimizer.step(closure)
    assert torch.isfinite(vector(model.parameters())).all()
    assert model.late_weight in optimizer.state


def test_closure_over_a_second_batch_still_steps() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1, acme=True)
    inputs = iter(data * 5)

    def closure():
        return make_closure(model, optimizer, next(inputs))()

    for _ in range(8):
        optimizer.step(closure)
    assert torch.isfinite(vector(model.parameters())).all()


@all_modes
def test_sums_in_float32_where_there_is_no_float64(mode, monkeypatch) -> None:
    """As on mps, which cannot be had here: nothing asks for float64, and the trajectory is nearly the same."""
    import acme.acme

    results = []
    for dtype in (torch.float64, torch.float32):
        monkeypatch.setattr(acme.acme, "_sum_dtype", lambda device, dtype=dtype: dtype)
        model, data = net(torch.float32), batches(dtype=torch.float32)
        model[0].bias.requires_grad_(False)
        train(model, Acme(model, start(mode), **mode), data, 5)
        results.append(vector(model.parameters()))
    torch.testing.assert_close(*results, rtol=2e-3, atol=2e-4)


def test_nesterovs_term_never_makes_weights_infinite() -> None:
    """The second gradient enters the step as it is, and times the step size it may be more than float32 holds."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Acme([weight], 1e22, (0.0, 0.9), acme=True, nesterov=True)
    evaluations = iter([(1.0, 1e-3), (0.9, 1e18)])

    def closure() -> float:
        loss, gradient = next(evaluations)
        weight.grad = torch.tensor([gradient])
        return loss

    optimizer.step(closure)
    assert optimizer.report.applied > 10
    assert weight.item() == -torch.finfo(torch.float32).max
