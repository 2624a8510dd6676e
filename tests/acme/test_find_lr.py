"""A learning rate for other optimizers: what it is worth there, and that everything is as before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import acme
from acme import Acme, closures, find_lr


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
    ).double()  # fmt: skip


def loader(batches: int = 8, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    teacher = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    inputs = torch.randn(batches, 32, 5, generator=draw, dtype=torch.float64)
    return [(x, (x @ teacher).argmax(1)) for x in inputs]


def some(model: nn.Module, **options) -> acme.Found:
    return find_lr(model, closures(model, loader(), nn.functional.cross_entropy), **options)


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_a_step_with_the_rate_is_the_step_of_acme(adam, betas) -> None:
    """torch's SGD or AdamW, with the averages that Acme has, and `found.lr`: the step of Acme with its α kept."""
    model, gain = network(), 3.0
    found = some(model, adam=adam, betas=betas, gain=gain)
    options = dict(acme=True, adam=adam, bias_correction=adam, unbiased_squares=adam, betas=betas, gain=gain)
    mine = Acme(model, **options, total_steps=None, search_steps=20, adapt_steps=60)
    steps = closures(model, loader(), nn.functional.cross_entropy)
    for _ in range(60):
        mine.step(next(steps))
    twin = copy.deepcopy(model)
    if adam:
        other = torch.optim.AdamW(twin.parameters(), lr=found.lr, betas=betas, weight_decay=0)
    else:
        other = torch.optim.SGD(twin.parameters(), lr=found.lr, momentum=betas[0])
    t = mine.param_groups[0]["t"]
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        average = mine.state[p]["exp_avg"]
        if adam:
            square = mine.state[p]["exp_avg_sq"].clone()
            other.state[q] = {"exp_avg": average.clone(), "exp_avg_sq": square, "step": torch.tensor(t - 1.0)}
        else:
            other.state[q] = {"momentum_buffer": average / (1 - betas[0])}
    batch = loader(1, seed=2)

    def little(outputs, targets):  # a gradient on which the limit does not act
        return nn.functional.cross_entropy(outputs, targets) / 100

    mine.step(next(closures(model, batch, little)))
    assert mine.report.limit == 1 and mine.report.evaluations == 1
    next(closures(twin, batch, little))()
    other.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("how", ["returns", "raises", "interrupted"])
def test_all_is_as_before(adam, how) -> None:
    model = network(dropout=0.5)
    model[1].eval()
    for p in list(model.parameters())[:2]:
        p.grad = torch.randn_like(p)
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters]
    before = copy.deepcopy((model.state_dict(), gradients)), torch.get_rng_state()
    modes = [module.training for module in model.modules()]

    def broken():
        for number, closure in enumerate(closures(model, loader(), nn.functional.cross_entropy)):
            if number == 30 and how != "returns":
                model.train()
                closure()
                raise KeyboardInterrupt if how == "interrupted" else ValueError("a broken batch")
            yield closure

    if how == "returns":
        assert find_lr(model, broken(), adam=adam).lr > 0
    else:
        with pytest.raises(KeyboardInterrupt if how == "interrupted" else ValueError):
            find_lr(model, broken(), adam=adam)
    after = (model.state_dict(), gradients), torch.get_rng_state()
    assert all(map(torch.equal, before[0][0].values(), after[0][0].values()))
    assert all(a is b for a, b in zip(gradients, [p.grad for p in parameters], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[0][1], gradients, strict=True) if a is not None)
    assert torch.equal(before[1], after[1])
    assert modes == [module.training for module in model.modules()]


@pytest.mark.parametrize("adam", [False, True])
def test_twice_the_same(adam) -> None:
    model = network(dropout=0.5)
    one, two = some(model, adam=adam), some(model, adam=adam)
    assert one == two and one.lr > 0 and one.reason is None
    assert len(one.trace) == 60 and one.evaluations == 120
    assert {r.decision is None for r in one.trace} == {False}


@pytest.mark.parametrize("adam", [False, True])
def test_the_rate_hardly_depends_on_the_start(adam) -> None:
    """From ten decades of starts; the searching steps are of ten each."""
    model, rates = network(), []
    for start in (1e-6, 1e-3, 1e4):
        groups = [{"params": model.parameters(), "lr": start}]
        rates.append(find_lr(groups, closures(model, loader(), nn.functional.cross_entropy), adam=adam).lr)
    assert max(rates) / min(rates) < 3, rates


def test_groups_keep_their_ratio() -> None:
    model = network()
    first, *others = model.parameters()
    batches = closures(model, loader(), nn.functional.cross_entropy)
    found = find_lr([{"params": [first], "lr": 0.01}, {"params": others, "lr": 0.03}], batches)
    rates = [group["lr"] for group in found.groups]
    assert found.lr == rates[0] and rates[1] / rates[0] == pytest.approx(3, rel=1e-9)


def nothing(model):
    return [lambda: torch.tensor(1.0)] * 60


def not_finite(model):
    batches = [(torch.full_like(x, float("nan")), y) for x, y in loader()]
    return closures(model, batches, nn.functional.cross_entropy)


def backwards(model):
    """The gradient of minus the loss."""

    def negative(closure):
        def evaluate():
            loss = closure()
            for p in model.parameters():
                p.grad.neg_()
            return loss

        return evaluate

    return (negative(closure) for closure in closures(model, loader(), nn.functional.cross_entropy))


def linear(model):
    """A loss that falls for ever, where no step is too long."""

    def closure():
        model.zero_grad()
        loss = sum((p - 1e9).sum() for p in model.parameters())
        loss.backward()
        return loss

    return [closure] * 60


def changed(change):
    """Gradients that are not those of the loss."""

    def closures_of(model):
        def evaluate(closure):
            loss = closure()
            change(model)
            return loss

        return map(
            lambda closure: lambda: evaluate(closure), closures(model, loader(), nn.functional.cross_entropy)
        )

    return closures_of


def scale(model):
    for p in model.parameters():
        p.grad.mul_(1024)


def clip(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def few(model):
    return (closure for closure, _ in zip(closures(model, loader(), nn.functional.cross_entropy), range(12)))  # noqa: B905


@pytest.mark.filterwarnings("ignore:After the closure no parameter")
@pytest.mark.filterwarnings("ignore:Gradients seem to be clipped")
@pytest.mark.parametrize(
    "closures_of, reason",
    [(nothing, "no parameter"), (not_finite, "not finite"), (backwards, "downhill"), (linear, "growing"), (few, "12 batches"),
     (changed(scale), "scaled"), (changed(clip), "clipped")],
)  # fmt: skip
def test_no_rate_where_there_is_none(closures_of, reason) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    found = find_lr(model, closures_of(model))
    assert found.lr is None and found.groups == [{"lr": None}] and reason in found.reason
    assert "no learning rate" in str(found) and reason in str(found) and "\n" not in str(found)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_accumulation_autocast_and_two_optimizers() -> None:
    """A closure may evaluate several batches; each of two optimizers is a call of its own, and untouched."""
    model = network().float()
    ends = [
        torch.optim.SGD(model[0].parameters(), 0.5, momentum=0.9),
        torch.optim.AdamW(model[4].parameters()),
    ]
    before = copy.deepcopy([end.state_dict() for end in ends])
    batches = [(x.float(), y) for x, y in loader()]

    def evaluate():
        model.zero_grad()
        total = torch.zeros(())
        for x, y in batches[:2]:
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x), y) / 2
            loss.backward()
            total += loss.detach()
        return total

    for part, adam in ((model[0], False), (model[4], True)):
        assert find_lr(part, [evaluate] * 60, adam=adam).lr > 0
    assert before == [end.state_dict() for end in ends]


def test_printed_and_drawn() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    found = some(network(), adam=True)
    assert str(found).startswith(f"lr={found.lr:.3g} for torch.optim.AdamW") and "120 evaluations" in str(
        found
    )
    axes = pyplot.figure().add_subplot()
    assert found.plot(axes) is axes and len(axes.lines[0].get_ydata()) == 60
    assert some(network()).plot().get_xlabel() == "step"
    pyplot.close("all")


@pytest.mark.parametrize("steps", [0, 5, 60.0, True])
def test_wrong_steps(steps) -> None:
    with pytest.raises(ValueError, match="steps"):
        some(network(), steps=steps)


def test_an_empty_loader_ends() -> None:
    model = network()
    assert "0 batches" in find_lr(model, closures(model, [], nn.functional.cross_entropy)).reason


@pytest.mark.parametrize("adam", [False, True])
def test_a_long_momentum_is_no_obstacle(adam) -> None:
    """The step size's memory would outlast the steps. SGD's rates are those of one step, and a long momentum adds more up."""
    short, long = (some(network(), adam=adam, betas=(beta, 0.999)).lr for beta in (0.9, 0.99))
    effective = 1 if adam else 10
    assert 0.1 < effective * long / short < 10


def test_a_part_of_a_module_and_all_is_as_before() -> None:
    model = network()
    model(loader()[0][0]).sum().backward()
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    batches = closures(model, loader(), nn.functional.cross_entropy)
    assert find_lr(model[4], batches, buffers_of=model).lr > 0
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    for p, (gradient, copied) in zip(model.parameters(), gradients, strict=True):
        assert p.grad is gradient and torch.equal(gradient, copied)


def test_a_part_of_a_module_is_searched_as_the_whole_is() -> None:
    """Both evaluations of a step see the buffers of the whole module as they are at its start."""

    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            self.seen += 1
            return self.inner(x) * (1 + self.seen / 100)

    rates = []
    for part in (lambda model: model, lambda model: model.inner):
        model = Drifting()
        batches = closures(model, loader(), nn.functional.cross_entropy)
        rates.append(find_lr(part(model), batches, buffers_of=model).lr)
    assert rates[0] == rates[1] > 0


def test_an_error_of_the_callers_is_the_callers() -> None:
    def broken():
        raise FloatingPointError("divide by zero")

    with pytest.raises(FloatingPointError, match="divide"):
        find_lr(network(), [broken] * 60)


@pytest.mark.parametrize(
    "batch", [{"x": torch.ones(2, 5)}, torch.ones(2, 5), (torch.ones(2, 5),) * 3, (torch.ones(2, 5), [0, 1])]
)
def test_batches_that_closures_cannot_be_made_of(batch) -> None:
    model = network()
    with pytest.raises(TypeError, match="a pair of tensors"):
        find_lr(model, closures(model, [batch], nn.functional.cross_entropy))


def test_groups_that_stand_still_have_no_ratio() -> None:
    model = network()
    first, *others = model.parameters()
    for rates in ((0.0, 0.1), (0.1, 0.0)):
        groups = [{"params": [first], "lr": rates[0]}, {"params": others, "lr": rates[1]}]
        with pytest.raises(ValueError, match="lr of a group"):
            find_lr(groups, closures(model, loader(), nn.functional.cross_entropy))
