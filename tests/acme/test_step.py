"""The step against formulas, torch's own optimizers and a second writing of the specification."""

import copy
import math

import pytest
import torch
from common import all_modes, batches, evaluations, loss_closure, make_closure, net, start, train, vector
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from torch import nn

from acme import Acme, Decision


class Quadratic(nn.Module):
    """½ Σ c·(w - 1)², in two parameters."""

    def __init__(self, n: int = 6, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.c = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
        self.weight = nn.Parameter(scale * torch.randn(n // 2, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(scale * torch.randn(n - n // 2, generator=generator, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        return 0.5 * (self.c * (torch.cat([self.weight, self.bias]) - 1) ** 2).sum()


@all_modes
@pytest.mark.parametrize(
    "variant",
    [
        "one group", "one group, unbiased squares", "equal groups", "unequal groups", "clipped", "unequal groups, kept",
        "unequal groups, search from far below", "unequal groups, search from far above", "zero start",
        "zero start, unbiased squares",
    ],
)  # fmt: skip
def test_equals_the_oracle(mode, variant) -> None:
    """25 steps of a small network in float64, all group variants, against the vector form."""
    model, data = net(), batches()
    if "zero start" in variant:  # so that in the first step the other layers' gradients are exactly zero
        nn.init.zeros_(model[4].weight)
    names, params = zip(*model.named_parameters(), strict=True)
    options = dict(lr=start(mode), betas=(0.8, 0.97), weight_decay=0.01, rho=0.2, eta=0.01)
    groups = [i % 2 if "groups" in variant else 0 for i in range(len(params))]
    per_group = [dict(options) for _ in range(max(groups) + 1)]
    if variant.startswith("unequal groups"):
        per_group[1] = dict(lr=options["lr"] * 0.3, betas=(0.6, 0.9), weight_decay=0.0, rho=0.1, eta=0.1)
    norm = 0.6 if variant == "clipped" else None  # of gradients of 0.4 to 1
    shared = dict(**mode, bias_correction=mode["adam"], total_steps=30, max_grad_norm=norm)
    if variant.endswith("unbiased squares") and mode["adam"]:
        shared.update(unbiased_squares=True)
    if variant.endswith("kept") and mode["acme"]:
        shared.update(gain=2.5, adapt_steps=7)
    searching = "search" in variant and mode["acme"]
    if searching:
        shared.update(search_steps=12, adapt_steps=20)
        for group in per_group:
            group["lr"] *= 1e-3 if variant.endswith("below") else 1e3
    optimizer = Acme(
        [
            {
                "params": [
                    p for p, group in zip(model.named_parameters(), groups, strict=True) if group == g
                ],
                **o,
            }
            for g, o in enumerate(per_group)
        ],
        **shared,
    )
    oracle = Oracle(
        vector(params), [p.numel() for p in params], ["weight" in n for n in names], groups,
        **{key: [o[key] for o in per_group] for key in options}, **shared,
    )  # fmt: skip
    twin = net()

    def function(batch):
        def f(w):
            nn.utils.vector_to_parameters(w, twin.parameters())
            twin.zero_grad()
            loss = nn.functional.cross_entropy(twin(batch[0]), batch[1])
            loss.backward()
            return loss.item(), torch.cat([p.grad.flatten() for p in twin.parameters()])

        return f

    if variant.startswith("unequal groups") and mode["acme"]:
        # γ is each group's own (its betas'); the step size's memory is the first group's for all.
        assert optimizer.param_groups[0]["betas"] != optimizer.param_groups[1]["betas"]
    searched = 0
    for i in range(25):
        batch = data[i % len(data)]
        loss = optimizer.step(make_closure(model, optimizer, batch))
        expected = oracle.step(function(batch))
        assert float(loss) == pytest.approx(expected, rel=1e-9)
        assert optimizer.report.decision == oracle.code
        assert optimizer.report.evaluations == 1 + mode["asam"] + (oracle.code is not None)
        # A bias in front of BatchNorm has a gradient of rounding only, which Adam divides by ε: the longer the way.
        atol = 1e-8 if searching and mode["adam"] else 1e-11
        torch.testing.assert_close(vector(params), oracle.w, rtol=1e-8, atol=atol)
        searched += searching and optimizer.report.applied == 0
    for g, group in enumerate(optimizer.param_groups):
        alphas = oracle.alpha[oracle.group == g]
        assert group["step_size"] == pytest.approx(alphas[0].item(), rel=1e-9)
        assert (alphas == alphas[0]).all()
    assert (searched > 1) == searching


@all_modes
def test_equal_groups_change_nothing(mode) -> None:
    one, two = net(), net()
    data = batches()
    first = Acme(one, start(mode), **mode, total_steps=30)
    named = list(two.named_parameters())
    second = Acme([{"params": named[:1]}, {"params": named[1:4]}, {"params": named[4:]}],
                  start(mode), **mode, total_steps=30)  # fmt: skip
    losses = train(one, first, data, 20), train(two, second, data, 20)
    assert losses[0] == losses[1]
    assert torch.equal(vector(one.parameters()), vector(two.parameters()))
    assert all(g["step_size"] == first.param_groups[0]["step_size"] for g in second.param_groups)
    assert first.report == second.report


@all_modes
def test_unequal_groups_keep_their_ratio(mode) -> None:
    model, data = net(), batches()
    named = list(model.named_parameters())
    groups = [{"params": named[:2], "lr": start(mode)}, {"params": named[2:], "lr": start(mode) / 7}]
    optimizer = Acme(groups, **mode)
    for i in range(20):
        train(model, optimizer, data, 1, first=i)
        a, b = (group["step_size"] for group in optimizer.param_groups)
        assert a / b == pytest.approx(7, rel=1e-12)
    assert not mode["acme"] or a != start(mode)


@pytest.mark.parametrize("nesterov", [False, True])
def test_plain_step_is_the_formula(nesterov) -> None:
    """acme off, adam off: m ← β m + (1 - β) g', w ← (w - α d)·(1 - α·decay), written out by hand."""
    lr, beta, decay = 0.05, 0.9, 0.1
    model = Quadratic()
    optimizer = Acme(model, lr, betas=(beta, 0.999), weight_decay=decay, nesterov=nesterov)
    w, m = vector(model.parameters()), None
    for _ in range(10):
        g = model.c * (w - 1)
        m = g.clone() if m is None else m
        b, c = beta * (m @ g), (2 - beta**2) * (m @ m) * (g @ g)
        k = min(1.0, ((b * b + c).sqrt() - b).item() / ((1 - beta) * (g @ g)).item())
        m = beta * m + (1 - beta) * k * g
        direction = beta * m + (1 - beta) * g if nesterov else m
        w = (w - lr * direction) * (1 - lr * decay)
        optimizer.step(loss_closure(model, optimizer))
        torch.testing.assert_close(vector(model.parameters()), w, rtol=1e-12, atol=1e-14)


def test_limit_doubles_the_average_exactly() -> None:
    """A sudden gradient, 1000 times the others: the average's squared norm becomes exactly twice as large."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = Acme([("weight", weight)], 0.01)
    size = 1.0

    def closure():
        optimizer.zero_grad()
        loss = (size * weight * torch.tensor([1.0, 3.0], dtype=torch.float64)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.report.limit == 1
    before = optimizer.state[weight]["exp_avg"].square().sum().item()
    size = 1000.0
    optimizer.step(closure)
    assert optimizer.report.limit < 0.02
    assert optimizer.state[weight]["exp_avg"].square().sum().item() == pytest.approx(2 * before, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_sgd_is_torch_sgd(beta) -> None:
    """With the limit inactive. Acme's average starts at the first gradient, as torch's momentum buffer does, but then
    takes that gradient once more; torch is brought to the same start by giving it the first gradient beforehand."""
    ours, theirs = net(), net()
    data = batches()
    optimizer = Acme(ours, 0.1, betas=(beta, 0.999))
    sgd = torch.optim.SGD(theirs.parameters(), 0.0, momentum=beta, dampening=beta)
    make_closure(theirs, sgd, data[0])()
    theirs.load_state_dict(net().state_dict())  # BatchNorm has counted that evaluation
    sgd.step()  # lr 0: only the buffer starts
    sgd.param_groups[0]["lr"] = 0.1
    limits = []
    for i in range(20):
        optimizer.step(make_closure(ours, optimizer, data[i % len(data)]))
        limits.append(optimizer.report.limit)
        sgd.step(make_closure(theirs, sgd, data[i % len(data)]))
        if limits[-1] < 1:
            break
        torch.testing.assert_close(
            vector(ours.parameters()), vector(theirs.parameters()), rtol=1e-10, atol=1e-13
        )
    assert limits.count(1.0) >= (1 if beta == 0 else 10)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_adam_is_torch_adamw(bias_correction) -> None:
    """With the limit inactive, the same averages as torch's AdamW from a common state on.

    What differs is the published start-up: the averages begin at the first gradient (v at its mean square, the same
    for all elements of a tensor) and count it again at t = 1, while AdamW's begin at 0; ε is added to sqrt(v) before
    the correction of m divides in both. Weight decay multiplies after the step here, before it in AdamW, so it is 0.
    AdamW always corrects its bias; without correction here, it is compared at a step count at which AdamW's no longer
    changes anything.
    """
    ours, theirs = net(), net()
    data = batches()
    lr, betas = 1e-3, (0.9, 0.95)
    optimizer = Acme(ours, lr, betas=betas, adam=True, bias_correction=bias_correction)
    adamw = torch.optim.AdamW(theirs.parameters(), lr, betas=betas, eps=1e-8, weight_decay=0.0)
    train(ours, optimizer, data, 3)
    theirs.load_state_dict(ours.state_dict())
    done = 3 if bias_correction else 10_000
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        adamw.state[q] = {
            "step": torch.tensor(float(done)),
            "exp_avg": optimizer.state[p]["exp_avg"].clone(),
            "exp_avg_sq": optimizer.state[p]["exp_avg_sq"].clone(),
        }
    for i in range(3, 20):
        train(ours, optimizer, data, 1, first=i)
        train(theirs, adamw, data, 1, first=i)
        assert optimizer.report.limit == 1
        torch.testing.assert_close(
            vector(ours.parameters()), vector(theirs.parameters()), rtol=1e-9, atol=1e-12
        )


def test_slopes_are_directional_derivatives() -> None:
    """p0 and p1 against finite differences of the loss along the step."""
    model, (batch,) = net(), batches(1)
    optimizer = Acme(model, 0.3, acme=True)
    train(model, optimizer, [batch], 3)
    w, alpha = vector(model.parameters()), optimizer.param_groups[0]["step_size"]
    probe = copy.deepcopy(model)
    m = torch.cat([optimizer.state[p]["exp_avg"].flatten().clone() for p in model.parameters()])
    make_closure(probe, torch.optim.SGD(probe.parameters()), batch)()
    g = torch.cat([p.grad.flatten() for p in probe.parameters()])
    optimizer.step(make_closure(model, optimizer, batch))
    report = optimizer.report
    d = 0.9 * m + 0.1 * report.limit * g

    def loss(s: float) -> float:
        nn.utils.vector_to_parameters(w - s * d, probe.parameters())
        return nn.functional.cross_entropy(probe(batch[0]), batch[1]).item()

    h = 1e-6
    assert report.loss == pytest.approx(loss(0), rel=1e-12)
    assert report.look_ahead_loss == pytest.approx(loss(alpha), rel=1e-12)
    assert report.slope == pytest.approx((loss(-h) - loss(h)) / (2 * h), rel=1e-6)
    assert report.look_ahead_slope == pytest.approx((loss(alpha - h) - loss(alpha + h)) / (2 * h), rel=1e-5)
    assert report.step_size == alpha


@all_modes
def test_report(mode) -> None:
    model, data = net(), batches()
    optimizer = Acme(model, start(mode), **mode)
    assert optimizer.report is None
    (loss,) = train(model, optimizer, data, 1)
    report = optimizer.report
    assert report.loss == loss
    assert report.evaluations == evaluations(mode)
    assert report.step_size == start(mode)
    assert 0 < report.limit <= 1
    searched = (report.look_ahead_loss, report.slope, report.look_ahead_slope, report.decision)
    if mode["acme"]:
        assert isinstance(report.decision, Decision) and None not in searched
    else:
        assert searched == (None,) * 4 and report.applied == start(mode)


@given(total=st.integers(1, 30))
@settings(max_examples=15)
def test_annealing_falls_and_stays(total) -> None:
    """On a loss linear in w every look-ahead is better: a/α is γ·A, whose A is the half cosine, then 0.01."""
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = Acme([weight], 1e-3, acme=True, total_steps=total)

    def closure():
        optimizer.zero_grad()
        loss = 100 - weight.sum()
        loss.backward()
        return loss

    gamma = 2 * 0.1 / 1.9 * 2.8 / 1.1
    for done in range(total + 5):
        optimizer.step(closure)
        optimizer.param_groups[0]["step_size"] = 1e-3
        expected = gamma * (0.01 + 0.99 * (1 + math.cos(math.pi * min(done / total, 1))) / 2)
        assert optimizer.report.applied / 1e-3 == pytest.approx(expected, rel=1e-12)


def test_without_total_steps_nothing_anneals() -> None:
    model, data = net(), batches()
    optimizer = Acme(model, 0.1, acme=True, total_steps=None)
    for i in range(30):
        train(model, optimizer, data, 1, first=i)
        report = optimizer.report
        if report.look_ahead_loss <= report.loss:
            assert report.applied / report.step_size == pytest.approx(2 * 0.1 / 1.9 * 2.8 / 1.1, rel=1e-12)


@pytest.mark.parametrize("acme", [False, True])
def test_scheduler_scales_the_applied_step(acme) -> None:
    """A moved `lr` scales what is applied and leaves the adaptation of α alone."""
    plain, scheduled = net(), net()
    data = batches()
    one, two = Acme(plain, 0.1, acme=acme), Acme(scheduled, 0.1, acme=acme)
    scheduler = torch.optim.lr_scheduler.LambdaLR(two, lambda epoch: 0.25)
    train(plain, one, data, 1)
    train(scheduled, two, data, 1)
    assert two.report.applied == pytest.approx(0.25 * one.report.applied, rel=1e-12)
    if acme:
        assert two.report.step_size == one.report.step_size
        assert two.param_groups[0]["step_size"] == one.param_groups[0]["step_size"]
    scheduler.step()
    assert two.param_groups[0]["lr"] == 0.025


def test_lr_as_a_tensor() -> None:
    one, two = net(), net()
    data = batches()
    losses = [
        train(model, Acme(model, lr, acme=True), data, 5)
        for model, lr in ((one, 0.1), (two, torch.tensor(0.1, dtype=torch.float64)))
    ]
    assert losses[0] == losses[1]


def test_the_claim_on_a_quadratic() -> None:
    """From any start in eight decades, plain descent with ACME brings a quadratic's loss down."""
    for lr in (1e-6, 1e-4, 1e-2, 1.0, 100.0):
        model = Quadratic(scale=3)
        initial = model().item()
        optimizer = Acme(model, lr, acme=True, total_steps=None)
        for _ in range(150):
            optimizer.step(loss_closure(model, optimizer))
        assert model().item() < 1e-3 * initial, lr
