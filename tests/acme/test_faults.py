"""What users of optimizers meet: autocast, odd buffers and parameters, weights that grow, exceptions, foreign states."""

import copy
import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from common import (
    MODES,
    all_modes,
    assert_same,
    batches,
    evaluations,
    loss_closure,
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

from acme import Acme, Decision, Measured, Move

acme_modes = pytest.mark.parametrize("mode", [mode for mode in MODES if mode["acme"]], ids=mode_id)
one_of_each = pytest.mark.parametrize("mode", [MODES[0], MODES[8], MODES[15]], ids=mode_id)


def step_in_parts(optimizer: Acme, evaluate) -> None:
    with optimizer.step_in_parts():
        while optimizer.next_part is not None:
            with torch.enable_grad():
                loss = evaluate()
            getattr(optimizer, optimizer.next_part)(loss)


# Evaluations see the weights as they are


@all_modes
@pytest.mark.parametrize("way", ["step", "parts"])
def test_autocast_around_the_step(mode, way) -> None:
    """The same numbers as with autocast within the closure, which would otherwise cast the weights once for all."""
    results = []
    for around in (False, True):
        model, data = net(torch.float32), batches(dtype=torch.float32)
        optimizer = Acme(model, start(mode), **mode)
        reports = []
        for i in range(8):

            def closure(model=model, optimizer=optimizer, batch=data[i % 4], around=around):
                optimizer.zero_grad()
                with nullcontext() if around else torch.autocast("cpu", torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
                loss.backward()
                return loss

            with torch.autocast("cpu", torch.bfloat16) if around else nullcontext():
                step_in_parts(optimizer, closure) if way == "parts" else optimizer.step(closure)
            reports.append(optimizer.report)
        results.append((reports, vector(model.parameters())))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert not mode["acme"] or reports[-1].step_size < 100 * start(mode)


# Closures that do not evaluate


def said(action) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in caught]


def test_a_closure_that_does_not_evaluate_again_is_noticed_once() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1, acme=True)
    loss = make_closure(model, optimizer, data[0])()
    messages = said(lambda: [optimizer.step(lambda: loss) for _ in range(5)])
    assert len(messages) == 1 and "evaluate again" in messages[0]


@acme_modes
def test_a_plateau_is_no_such_closure(mode) -> None:
    """Same loss, same gradients: of zeros, or of a plane; but evaluated again."""
    for slope in (0.0, 1.0):
        weight = nn.Parameter(torch.ones(3))
        optimizer = Acme([("weight", weight)], 1e-9, **mode)

        def closure(weight=weight, optimizer=optimizer, slope=slope):
            optimizer.zero_grad()
            loss = 3 + slope * 1e-9 * weight.sum()
            loss.backward()
            return loss

        assert said(lambda o=optimizer, c=closure: [o.step(c) for _ in range(3)]) == []


@one_of_each
def test_a_backward_pass_that_reaches_no_parameter_is_noticed_once(mode) -> None:
    optimizer, other, data = Acme(net(), 0.1, **mode), net(), batches()
    closure = make_closure(other, optimizer, data[0])
    messages = said(lambda: [optimizer.step(closure) for _ in range(3)])
    assert len(messages) == 1 and "gradient" in messages[0]


# Buffers and parameters of every kind


class Odd(nn.Module):
    """A network with a buffer of some kind, which it uses where it can."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = net(torch.float32)
        eye = torch.eye(3)
        with torch.inference_mode():
            inference = eye + 1
        self.kind = kind
        self.register_buffer(
            "odd",
            {
                "sparse": eye.to_sparse(), "csr": eye.to_sparse_csr(), "expanded": torch.ones(1).expand(3), "none": None,
                "inference": inference, "lazy": nn.parameter.UninitializedBuffer(),
                "nested": torch.nested.nested_tensor([eye[0], eye[1, :2]]) if kind == "nested" else None,
                "replaced": torch.zeros(3), "overlapping": torch.zeros(5).as_strided((3, 3), (1, 1)),
                "bool": torch.ones(3, dtype=torch.bool),
            }[kind],
        )  # fmt: skip

    def forward(self, x):
        y = self.net(x)
        if self.kind in ("sparse", "csr"):
            y = y @ self.odd.to_dense()
        if self.kind == "inference":
            y = y + self.odd[0]
        if self.kind in ("expanded", "bool"):
            y = y * self.odd
        if self.kind == "replaced":  # not in place: another tensor each time
            self.odd = self.odd + 1
        return y


@one_of_each
@pytest.mark.parametrize(
    "kind",
    ["sparse", "csr", "expanded", "inference", "lazy", "nested", "replaced", "overlapping", "bool", "none"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_buffers_of_every_kind(kind, mode) -> None:
    model, data = Odd(kind), batches(dtype=torch.float32)
    optimizer = Acme(model, start(mode), **mode)
    before = model.odd
    train(model, optimizer, data, 3)
    assert kind == "replaced" or model.odd is before
    assert kind != "replaced" or (model.odd == 3).all()
    assert model.net[1].num_batches_tracked == 3

    def fail(call, loss):
        if call == evaluations(mode):
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(make_closure(model, optimizer, data[0], fail))
    assert model.net[1].num_batches_tracked == 3
    assert kind != "replaced" or (model.odd == 3).all()


@one_of_each
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_modules_that_are_initialised_by_their_first_evaluation(mode) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.LazyBatchNorm1d(affine=False), nn.Linear(7, 3))
    data = batches(dtype=torch.float32)
    optimizer = Acme(model, start(mode), **mode)
    train(model, optimizer, data, 3)
    expected = nn.BatchNorm1d(7, affine=False)
    first = nn.Linear(5, 7)
    assert model[1].num_batches_tracked == 3
    # In evaluation on the first batch only: its statistics, not those of any look-ahead.
    model = nn.Sequential(first, nn.LazyBatchNorm1d(affine=False), nn.Linear(7, 3))
    expected(first(data[0][0]))
    optimizer = Acme(model, start(mode), **mode)
    train(model, optimizer, data, 1)
    torch.testing.assert_close(model[1].running_mean, expected.running_mean)


class Copies(TorchDispatchMode):
    """The largest tensor that is cloned or copied to."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if "clone" in name or "copy" in name:
            written = [t for t in tree_leaves((args, result)) if isinstance(t, torch.Tensor)]
            self.largest = max(self.largest, *(t.numel() for t in written))
        return result


@one_of_each
def test_large_constant_buffers_cost_nothing(mode) -> None:
    model, data = net(), batches()
    model.register_buffer("table", torch.ones(300_000))
    optimizer = Acme(model, start(mode), **mode)
    train(model, optimizer, data, 2)
    closure, copies = make_closure(model, optimizer, data[2]), Copies()
    with copies:
        optimizer.step(closure)
    assert copies.largest < 300_000
    model.table.fill_(2)  # by hand, between steps
    train(model, optimizer, data, 1)
    assert (model.table == 2).all()


@acme_modes
def test_large_buffers_that_change_count_one_evaluation(mode) -> None:
    """In every step, or only in some."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.on = net(), True
            self.register_buffer("count", torch.zeros(300_000))

        def forward(self, x):
            self.count += 1 if self.on else 0
            return self.net(x)

        def rest(self, on: bool) -> None:
            self.on = on

    class Resting(Counting):
        def forward(self, x):
            if self.on:
                self.count += 1
            return self.net(x)

    for kind in (Counting, Resting):
        model, data = kind(), batches()
        optimizer = Acme(model, start(mode), **mode)
        for on, expected in ((True, 3), (False, 3), (True, 6)):
            model.rest(on)
            train(model, optimizer, data, 3)
            assert (model.count == expected).all()


@one_of_each
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64])
def test_frozen_parameters_of_any_dtype(mode, dtype) -> None:
    """They take no part: the numbers are those without them."""
    results = []
    for frozen in (False, True):
        model, data = net(), batches()
        if frozen:
            model.register_parameter("weight", nn.Parameter(torch.ones(4, dtype=dtype), requires_grad=False))
        optimizer = Acme(model, start(mode), **mode)
        results.append((train(model, optimizer, data, 4), vector(list(model.parameters())[-6:])))
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, data, 1)
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    assert model.weight not in optimizer.state and (model.weight == torch.ones(4, dtype=dtype)).all()


# Weights that grow or change their dtype between steps


def bowl(weight: nn.Parameter, optimizer: Acme):
    def closure():
        optimizer.zero_grad()
        loss = ((weight - 2) ** 2).sum()
        loss.backward()
        return loss

    return closure


@all_modes
@pytest.mark.parametrize("width", [3, 30_000], ids=("small", "large"))
def test_a_parameter_that_grows_with_its_state(mode, width) -> None:
    """All rows move, as those of an optimizer that has loaded the same state do."""
    weight = nn.Parameter(torch.ones(2, width, dtype=torch.float64))
    optimizer = Acme([("weight", weight)], start(mode) / width, **mode)
    for _ in range(3):
        optimizer.step(bowl(weight, optimizer))
    weight.data = torch.cat([weight.data, torch.zeros(1, width, dtype=torch.float64)])
    state = optimizer.state[weight]
    for key, value in state.items():
        state[key] = torch.cat([value, value[:1] / 2])
    twin = nn.Parameter(weight.detach().clone())
    other = Acme([("weight", twin)], 1.0, **mode)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        optimizer.step(bowl(weight, optimizer))
        other.step(bowl(twin, other))
    assert torch.equal(weight, twin)
    assert (weight[2] != 0).all() and optimizer.state[weight]["exp_avg"].shape == (3, width)


@all_modes
def test_a_parameter_that_grows_without_its_state(mode) -> None:
    """An error that says which, and that changes nothing."""
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = Acme([("table.weight", weight)], start(mode), **mode)
    optimizer.step(bowl(weight, optimizer))
    weight.data = torch.ones(5, 3)
    with pytest.raises(ValueError, match=r"exp_avg(.|\n)*\(5, 3\)(.|\n)*\(2, 3\)"):
        optimizer.step(bowl(weight, optimizer))
    assert (weight == 1).all() and optimizer.param_groups[0]["t"] == 2


def test_the_error_of_a_wrong_state_names_the_parameter() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = Acme([("table.weight", weight)], 0.1, acme=True)
    optimizer.step(bowl(weight, optimizer))
    weight.data = torch.ones(5, 3)
    with pytest.raises(ValueError, match="table.weight"):
        optimizer.step(bowl(weight, optimizer))


@one_of_each
def test_a_model_converted_after_a_step(mode) -> None:
    """An error that names both dtypes; with the state converted, too, it goes on."""
    model = net(torch.float32)
    optimizer = Acme(model, start(mode), **mode)
    train(model, optimizer, batches(dtype=torch.float32), 2)
    model.double()
    with pytest.raises(ValueError, match=r"float64(.|\n)*float32"):
        train(model, optimizer, batches(), 1)
    for state in optimizer.state.values():
        state.update({key: value.double() for key, value in state.items()})
    train(model, optimizer, batches(), 2)
    assert vector(model.parameters()).isfinite().all()


# Learning rates of zero


@acme_modes
def test_the_first_lr_that_is_not_zero_is_the_start(mode) -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.0, **mode)
    weights = vector(model.parameters())
    train(model, optimizer, data, 3)
    assert torch.equal(vector(model.parameters()), weights)
    group = optimizer.param_groups[0]
    group["lr"] = start(mode)
    train(model, optimizer, data, 1)
    assert optimizer.report.step_size == start(mode) and optimizer.report.applied > 0
    assert not torch.equal(vector(model.parameters()), weights)
    adapted = group["step_size"]
    group["lr"] = start(mode) / 2  # from here on, as with any schedule
    train(model, optimizer, data, 1)
    assert optimizer.report.step_size == adapted and group["reference_lr"] == start(mode)


@acme_modes
@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_group_whose_lr_is_zero_stays_at_the_look_ahead_too(mode, from_the_start) -> None:
    """And its neighbours' step sizes are those without it."""
    results = []
    for neighbour in (False, True):
        near, far = (nn.Parameter(torch.full((3,), x, dtype=torch.float64)) for x in (1.0, 10.0))
        groups = [{"params": [("near.bias", near)]}, {"params": [("far.bias", far)], "lr": 0.0}]
        if not from_the_start:
            groups[1]["lr"] = 1e-3
        optimizer = Acme(groups[: 1 + neighbour], 1e-3, **mode, rho=0.0)
        if neighbour:
            optimizer.param_groups[1]["lr"] = 0.0
        seen = []

        def closure(near=near, far=far, optimizer=optimizer, seen=seen):
            optimizer.zero_grad()
            far.grad = None
            seen.append(far.detach().clone())
            loss = ((near - 2) ** 2).sum() + ((far - 2) ** 2).sum()
            loss.backward()
            return loss

        for _ in range(6):
            optimizer.step(closure)
            assert optimizer.report.limit == 1
        assert all((value == 10).all() for value in seen)
        results.append((near.detach(), torch.tensor(optimizer.param_groups[0]["step_size"])))
    torch.testing.assert_close(*results, rtol=1e-9, atol=0)
    if neighbour and not from_the_start:
        optimizer.param_groups[1]["lr"] = 1e-3
        optimizer.step(closure)
        assert (far != 10).all()


# Exceptions anywhere


@all_modes
@pytest.mark.parametrize("cause", ["total_steps", "no gradient", "no evaluation", "clipping"])
def test_a_warning_turned_into_an_error_undoes_the_step(mode, cause) -> None:
    """Weights, averages, step size, counters, buffers, generators and `report` are as before it."""
    if cause in ("total_steps", "no evaluation", "clipping") and not mode["acme"]:
        pytest.skip("nothing to warn of")
    total, model, data = {"total_steps": 3}.get(cause), net(), batches()
    optimizer = Acme(model, start(mode), **mode, total_steps=total)
    train(model, optimizer, data, 3)
    closure = make_closure(model, optimizer, data[3])
    loss = closure()
    if cause == "no evaluation":
        closure = lambda: loss
    elif cause == "no gradient":
        model.zero_grad()
        closure = lambda: model(data[3][0]).sum().detach()
    elif cause == "clipping":

        def watch(*_) -> None:
            warnings.warn("seen", stacklevel=2)

        optimizer.watchers = [watch]
    before, report = snapshot(model, optimizer), optimizer.report
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        optimizer.step(closure)
    assert_same(before, snapshot(model, optimizer))
    assert optimizer.report is report
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(model, optimizer, data, 1)
    assert optimizer.param_groups[0]["t"] == 5


def test_watched_clipping_turned_into_an_error_undoes_the_step() -> None:
    """As above, with the warning that comes with `import acme`."""
    weight = nn.Parameter(torch.full((4,), 100.0, dtype=torch.float64))
    optimizer = Acme([weight], 0.01, acme=True, total_steps=None)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        nn.utils.clip_grad_norm_([weight], 1.0)
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            before = weight.detach().clone(), optimizer.state_dict(), optimizer.report
            before = copy.deepcopy(before[:2]) + before[2:]
            try:
                optimizer.step(closure)
            except UserWarning as warning:
                assert "clipped" in str(warning)
                break
        else:
            pytest.fail("no warning")
    assert torch.equal(weight, before[0]) and optimizer.report is before[2]
    assert optimizer.state_dict()["param_groups"] == before[1]["param_groups"]
    assert torch.equal(optimizer.state[weight]["exp_avg"], before[1]["state"][0]["exp_avg"])


# States of other optimizers, longer trainings, networks beside the optimizer's


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        (lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True), "momentum|nesterov"),
        (lambda params: torch.optim.SGD(params, 0.1, maximize=True), "maximize"),
        (lambda params: torch.optim.Adam(params, 0.1, amsgrad=True), "amsgrad|eps"),
        (lambda params: torch.optim.AdamW(params, 0.1), "eps"),
    ],
    ids=["nesterov", "maximize", "amsgrad", "adamw"],
)
@pytest.mark.parametrize("begun", [False, True])
def test_states_of_other_optimizers_are_refused(theirs, named, begun) -> None:
    model, data = net(), batches()
    other = theirs(model.parameters())
    if begun:
        train(model, other, data, 1)
    optimizer = Acme(model, 0.2, acme=True)
    train(model, optimizer, data, 2)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=f"'({named})'"):
        optimizer.load_state_dict(other.state_dict())
    assert_same(before, snapshot(model, optimizer))
    train(model, optimizer, data, 1)


@acme_modes
def test_a_training_is_extended_after_loading(mode) -> None:
    model, data = net(), batches()
    optimizer = Acme(model, start(mode), **mode, total_steps=4)
    train(model, optimizer, data, 4)
    other = net()
    other.load_state_dict(model.state_dict())
    resumed = Acme(other, start(mode), **mode, total_steps=4)
    resumed.load_state_dict(optimizer.state_dict())
    resumed.set_total_steps(16)
    gamma = 2 * (1 - 0.9) / (1 + 0.9) * (1 + 2 * 0.9) / (2 - 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for done in range(4, 16):
            train(other, resumed, data, 1, first=done)
            report, annealing = resumed.report, 0.01 + 0.99 * (1 + math.cos(math.pi * done / 16)) / 2
            if report.look_ahead_loss <= report.loss:
                assert report.applied == pytest.approx(gamma * annealing * report.step_size)
    again = Acme(net(), 0.1)
    again.load_state_dict(resumed.state_dict())
    assert again.param_groups[0]["total_steps"] == again.defaults["total_steps"] == 16
    again.set_total_steps(None)
    assert again.param_groups[0]["total_steps"] is None
    for wrong, error in ((0, ValueError), (2.5, TypeError), ("10", TypeError)):
        with pytest.raises(error, match="total_steps"):
            again.set_total_steps(wrong)
    assert again.param_groups[0]["total_steps"] is None


@acme_modes
def test_buffers_of_a_network_beside_the_optimizers(mode) -> None:
    """A generator's step, evaluated through the discriminator: both count one evaluation a step."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    discriminator = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    x = torch.randn(16, 4)
    for named, expected in (([generator, discriminator], 3), (None, 3 * evaluations(mode))):
        for network in (generator, discriminator):
            network[1].reset_running_stats()
        optimizer = Acme(generator, start(mode), **mode, buffers_of=named)

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            loss = nn.functional.softplus(-discriminator(generator(x))).mean()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        assert generator[1].num_batches_tracked == 3
        assert discriminator[1].num_batches_tracked == expected


# What starts at zero


class Lora(nn.Module):
    """A frozen layer, plus A·B with B zero."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        self.base = nn.Parameter(draw(6, 5) / 2, requires_grad=False)
        self.a_weight = nn.Parameter(draw(6, 2) / 2)
        self.b_weight = nn.Parameter(torch.zeros(2, 5, dtype=torch.float64))
        self.x, self.y = draw(32, 6), draw(32, 6) @ draw(6, 5)

    def forward(self) -> torch.Tensor:
        return nn.functional.mse_loss(self.x @ (self.base + self.a_weight @ self.b_weight), self.y)


@all_modes
def test_lora(mode) -> None:
    """With unbiased squares no step leaps by a gradient over ε, in any mode; the loss falls."""
    model, lr = Lora(), 0.01
    unbiased = dict(bias_correction=True, unbiased_squares=True) if mode["adam"] else {}
    optimizer = Acme(model, lr, **mode, **unbiased, rho=0.05, total_steps=None)
    losses = []
    for _ in range(40):
        before = vector(model.parameters())
        losses.append(optimizer.step(loss_closure(model, optimizer)).item())
        moved = (vector(model.parameters()) - before).abs().max().item()
        assert math.isfinite(losses[-1]) and moved < (
            1.0 if not mode["adam"] else 10 * max(optimizer.report.applied, lr)
        )
    assert losses[-1] < 0.98 * losses[0]
    assert (model.b_weight != 0).all()


@pytest.mark.parametrize("unbiased", [False, True])
def test_the_published_start_leaps_and_the_unbiased_one_does_not(unbiased) -> None:
    model = Lora()
    optimizer = Acme(
        model, 0.01, acme=True, adam=True, nesterov=True, bias_correction=True, unbiased_squares=unbiased
    )
    before = model.a_weight.detach().clone()
    optimizer.step(loss_closure(model, optimizer))
    assert ((model.a_weight - before).abs().max() > 100) == (not unbiased)


# Who takes part changes in every step


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(3)).double()
        self.head = nn.Linear(3, 3).double()
        self.turn = 0

    def forward(self, x):
        return self.head(torch.tanh(self.experts[self.turn](x)))


@all_modes
def test_a_mixture_of_experts(mode) -> None:
    """As if the optimizer were saved and loaded before every step, bit for bit; who has no turn keeps still."""
    model, twin, data = Experts(), Experts(), batches()
    optimizer, other = (Acme(m, start(mode), **mode, weight_decay=0.1) for m in (model, twin))
    for i in range(12):
        model.turn = twin.turn = [0, 1, 2, 2, 0][i % 5]
        still = vector(p for j, e in enumerate(model.experts) for p in e.parameters() if j != model.turn)
        train(model, optimizer, data, 1, first=i)
        assert torch.equal(
            still, vector(p for j, e in enumerate(model.experts) for p in e.parameters() if j != model.turn)
        )
        state = copy.deepcopy(other.state_dict())
        other = Acme(twin, 0.5, **mode)
        other.load_state_dict(state)
        train(twin, other, data, 1, first=i)
        assert_same(snapshot(model, optimizer), snapshot(twin, other), ignore=("rng",))
        assert optimizer.report == other.report


# Variants


class Parabola(Acme):
    """The vertex of the parabola through both losses with the slope of the start, instead of the cubic."""

    def decide(self, seen: Measured) -> Move:
        bend = (seen.l1 - seen.l0) / seen.alpha**2 + seen.p0 / seen.alpha
        vertex = torch.where(bend > 0, seen.p0 / (2 * bend), 2 * seen.alpha)
        step_size = seen.beta1 * seen.alpha + (1 - seen.beta1) * vertex
        decision = torch.zeros_like(vertex) + Decision.PARABOLA_START
        return Move(vertex, step_size, decision, seen.l1 > seen.l0, seen.l1 < seen.l0)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("lr", [1e-3, 0.1, 0.6])
def test_a_variant_that_decides_by_a_parabola(lr, capturable) -> None:
    """On a bowl of curvature 4 it finds the step size 1/4, with the first look-ahead."""
    weight = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
    optimizer = Parabola([weight], lr, betas=(0.0, 0.9), acme=True, total_steps=None, capturable=capturable)

    def closure():
        optimizer.zero_grad()
        loss = 2 * (weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.report.decision is Decision.PARABOLA_START
    assert float(optimizer.param_groups[0]["step_size"]) == pytest.approx(0.25)
    assert weight.abs().max() < 1e-9  # γ is 1 with β1 = 0


class Sometimes(Acme):
    """Looks ahead in every fourth step."""

    def looks(self) -> bool:
        return super().looks() and self.param_groups[0]["steps"] % 4 == 0


@acme_modes
def test_a_variant_that_looks_ahead_now_and_then(mode) -> None:
    model, data = net(), batches()
    optimizer = Sometimes(model, start(mode), **mode)
    for i in range(10):
        step_size = optimizer.param_groups[0]["step_size"]
        train(model, optimizer, data, 1, first=i)
        looked = optimizer.report.decision is not None
        assert looked == (i % 4 == 0)
        assert optimizer.report.evaluations == 1 + mode["asam"] + looked
        assert looked or optimizer.param_groups[0]["step_size"] == step_size
