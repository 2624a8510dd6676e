"""`Acme` as it goes on CUDA, here on the CPU: it reads the sums of a step at its end, and with `compile=True` it captures
its work and replays it, with a stand-in for the graphs.

The stand-in knows what a CUDA graph knows: the operations and the tensors they read and wrote when they were captured,
and nothing of the Python around them. tests/acme/test_cuda.py has the same with real graphs.
"""

import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import test_fuzz
import torch
from common import MODES, all_modes, assert_same, batches, make_closure, mode_id, net, snapshot, start, vector
from test_fuzz import WithAcme, WithoutAcme
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acme import Acme, acme


class Recorder(TorchDispatchMode):
    """Captures: everything is as before afterwards, but for new tensors."""

    replays = 0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write:
                self.before += [(t, t.clone()) for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
        for argument in func._schema.arguments:
            if argument.is_write and argument.name in kwargs:
                self.before.append((kwargs[argument.name], kwargs[argument.name].clone()))
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        Recorder.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def pool(self) -> None:
        return None


def capture(device: torch.device, pool: Any, work: Callable[[], Any]) -> tuple[Any, Recorder]:
    recorder = Recorder()
    with recorder:
        result = work()
    for tensor, value in reversed(recorder.before):
        tensor.copy_(value)
    return result, recorder


class AsItIs(dict):
    """Of the passes: not compiled, so that the stand-in sees their operations."""

    def __contains__(self, arithmetic) -> bool:
        return True

    def __missing__(self, arithmetic):
        return arithmetic


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acme, "_asynchronous", lambda device: True)
    monkeypatch.setattr(acme, "_capturable", lambda device: True)
    monkeypatch.setattr(acme, "_capture", capture)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acme, "_compiled", AsItIs())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled and not captured: the stand-in does not see the operations of what is compiled."""
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler, which inductor needs")
    monkeypatch.setattr(acme, "RUNS_BEFORE_CAPTURE", math.inf)
    monkeypatch.setattr(acme, "ROW_DEVICES", ("cpu",))


class DeferredWithAcme(WithAcme):
    deferred, steps = True, 30


class DeferredWithoutAcme(WithoutAcme):
    deferred, steps = True, 30


class CapturedWithAcme(DeferredWithAcme):
    compile = True


class CapturedWithoutAcme(DeferredWithoutAcme):
    compile = True


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("machine", [DeferredWithAcme, DeferredWithoutAcme])
def test_histories_as_it_is(machine, passes, monkeypatch) -> None:
    """Without `compile`, nothing is captured, and the host still reads a step's losses and sums only once."""
    monkeypatch.setattr(test_fuzz, "EXAMPLES", test_fuzz.EXAMPLES // 10)
    test_fuzz.test_histories(machine)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("machine", [CapturedWithAcme, CapturedWithoutAcme])
def test_histories(machine, stand_in, monkeypatch) -> None:
    """Of test_fuzz.py, a tenth as many, each part captured the first time and replayed from then on."""
    monkeypatch.setattr(acme, "RUNS_BEFORE_CAPTURE", 0)
    monkeypatch.setattr(test_fuzz, "EXAMPLES", test_fuzz.EXAMPLES // 10)
    monkeypatch.setattr(Recorder, "replays", 0)
    test_fuzz.test_histories(machine)
    assert Recorder.replays > test_fuzz.EXAMPLES


def graphs(optimizer: Acme) -> dict:
    return optimizer._plan.graphs.graphs


OPTIONS = [
    {},
    {"total_steps": 20, "weight_decay": 0.1, "max_grad_norm": 0.5},
    {"bias_correction": True, "total_steps": None},
]


@all_modes
@pytest.mark.parametrize("options", OPTIONS, ids=("plain", "decay+clipping", "bias correction"))
def test_same_as_without(mode, options, stand_in) -> None:
    """The numbers of the arithmetic as it is, while everything that may change from step to step does."""
    parts = {name for (name, _), _ in graphs(compare(mode, options))} - {
        "leap by two"
    }  # after worse look-aheads
    assert parts == {
        *(f"read {i + 1}" for i in range(1 + mode["acme"] + mode["asam"])),
        *(["climb"] if mode["asam"] else []),
        *(["limit", "look"] if mode["acme"] else []),
        "allow",
        "move ahead",
    }


@pytest.mark.parametrize("mode", [MODES[0], MODES[8], MODES[15]], ids=mode_id)
def test_same_where_it_is_compiled(mode, compiled) -> None:
    assert not graphs(compare(mode, OPTIONS[1]))


def compare(mode: dict, options: dict) -> Acme:
    """Train with and without; the optimizer with."""
    results = []
    for captured in (False, True):
        model = net(dropout=0.2)
        names = list(model.named_parameters())
        optimizer = Acme(
            [{"params": names[:3]}, {"params": names[3:], "lr": start(mode) / 3}],
            start(mode), **mode, **options, compile=captured,
        )  # fmt: skip
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
        data = batches()
        reports = []
        torch.manual_seed(0)
        for i in range(20):
            if mode["acme"] and i % 7 == 6:  # the look-ahead is worse
                for group in optimizer.param_groups:
                    group["step_size"] *= 100
            optimizer.step(make_closure(model, optimizer, data[i % 4]))
            scheduler.step()
            reports.append(optimizer.report)
        results.append((reports, vector(model.parameters()), optimizer))
    (reports, weights, _), (others, same, optimizer) = results
    torch.testing.assert_close(same, weights, rtol=1e-6, atol=1e-9)
    assert [r.decision for r in reports] == [r.decision for r in others]
    for a, b in zip(reports, others, strict=True):
        assert (b.loss, b.step_size, b.applied, b.limit) == pytest.approx(
            (a.loss, a.step_size, a.applied, a.limit)
        )
    if mode["acme"]:
        assert {r.look_ahead_loss > r.loss for r in reports[6:]} == {True, False}
    return optimizer


@all_modes
def test_strided_parameters_and_16_bits(mode, stand_in) -> None:
    """channels_last weights, transposed ones, bfloat16 ones: all in one order, the parameters' own."""
    results = []
    for captured in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 30))
        model.to(memory_format=torch.channels_last)
        model[3].weight.data = model[3].weight.data.t().contiguous().t()
        model[3].bias.data = model[3].bias.data.bfloat16()
        x, y = torch.randn(8, 3, 8, 8), torch.randint(0, 30, (8,))

        optimizer = Acme(model, start(mode) / 10, **mode, compile=captured)

        def closure(model=model, optimizer=optimizer, x=x, y=y):
            optimizer.zero_grad()
            h = model[:3](x)
            loss = nn.functional.cross_entropy(h @ model[3].weight.t() + model[3].bias.float(), y)
            loss.backward()
            return loss

        losses = [float(optimizer.step(closure)) for _ in range(8)]
        assert all(
            state["exp_avg"].stride() == p.stride() and state["exp_avg"].shape == p.shape
            for p, state in optimizer.state.items()
        )
        results.append((torch.tensor(losses), vector([p.float() for p in model.parameters()])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("every", [1, 4])
def test_rare_look_aheads(every, stand_in) -> None:
    """Two kinds of steps, each with graphs of its own."""
    results = []
    for captured in (False, True):
        model = net()
        optimizer = Acme(model, 0.1, acme=True, adapt_every=every, search_steps=5, compile=captured)
        evaluations = []
        for i in range(60):
            optimizer.step(make_closure(model, optimizer, batches()[i % 4]))
            evaluations.append(optimizer.report.evaluations)
        results.append((vector(model.parameters()), evaluations, optimizer))
    assert results[0][1] == results[1][1]
    kinds = {looks for (_, looks), _ in graphs(results[1][2])}
    assert kinds == ({True} if every == 1 else {True, False})
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-9)


@all_modes
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_exceptions(mode, failing, stand_in) -> None:
    """A closure that fails, or whose loss is not finite, in a step that is replayed."""
    if failing > mode["acme"] + mode["asam"]:
        pytest.skip("no such evaluation")
    results = []
    for captured in (False, True):
        model = net()
        optimizer = Acme(model, start(mode), **mode, compile=captured)
        x, y = batches(1)[0]

        def fail(call, loss):
            if call == failing + 1:
                raise KeyError("in the closure")
            return loss

        def spoil(call, loss, model=model):
            if call == failing + 1:
                model[0].weight.grad.fill_(torch.nan)
            return loss

        def train(steps, model=model, optimizer=optimizer, x=x, y=y):
            for _ in range(steps):
                optimizer.step(make_closure(model, optimizer, (x, y)))

        train(6)
        before = snapshot(model, optimizer)
        with pytest.raises(KeyError, match="in the closure"):
            optimizer.step(make_closure(model, optimizer, (x, y), fail))
        assert_same(before, snapshot(model, optimizer))
        if mode["acme"] and failing == mode["acme"] + mode["asam"]:
            optimizer.step(make_closure(model, optimizer, (x, y), spoil))
            assert optimizer.report.decision == -1
        else:
            with pytest.raises(FloatingPointError, match="gradient"):
                optimizer.step(make_closure(model, optimizer, (x, y), spoil))
            assert_same(before, snapshot(model, optimizer))
        train(3)
        results.append(vector(model.parameters()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


def test_a_gradient_that_becomes_zero(stand_in) -> None:
    """The step is taken back and anew without that parameter, and again with it."""
    results = []
    for captured in (False, True):
        model = net()
        optimizer = Acme(model, 0.01, acme=True, adam=True, compile=captured)
        data = batches()

        def closure(step, model=model, optimizer=optimizer, data=data):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data[step % 4][0]), data[step % 4][1])
            loss.backward()
            if 6 <= step < 9:
                model[0].weight.grad.zero_()
            return loss

        for step in range(16):
            before = model[0].weight.detach().clone()
            optimizer.step(lambda: closure(step))  # noqa: B023
            assert torch.equal(before, model[0].weight) == (6 <= step < 9)
        results.append(vector(model.parameters()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


def test_what_lies_elsewhere_is_noticed(stand_in) -> None:
    """Weights moved to other memory, averages replaced or loaded: captured anew, nothing lost."""
    results = []
    for captured in (False, True):
        model = net()
        optimizer = Acme(model, 0.1, acme=True, adam=True, compile=captured)

        def train(steps, model=model, optimizer=optimizer):
            for i in range(steps):
                optimizer.step(make_closure(model, optimizer, batches()[i % 4]))

        train(6)
        model[0].weight.data = model[0].weight.data.clone()
        train(5)
        state = optimizer.state[model[0].weight]
        state["exp_avg"] = state["exp_avg"] * 2
        train(5)
        optimizer.load_state_dict(optimizer.state_dict())
        train(5)
        results.append(vector(model.parameters()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


@all_modes
def test_gradients_that_all_become_zero(mode, stand_in) -> None:
    """The step has nothing to do, and the next one goes on."""
    results = []
    for captured in (False, True):
        model = net()
        optimizer = Acme(model, start(mode), **mode, compile=captured)

        def closure(step, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batches()[step % 4][0]), batches()[step % 4][1])
            loss.backward()
            if step in (1, 6, 7):
                torch._foreach_zero_([p.grad for p in model.parameters()])
            return loss

        for step in range(12):
            before = vector(model.parameters()).clone()
            optimizer.step(lambda: closure(step))  # noqa: B023
            assert torch.equal(before, vector(model.parameters())) == (step in (1, 6, 7))
        results.append(vector(model.parameters()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


class Counter(nn.Module):
    """Counts the forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return x


@pytest.mark.parametrize("captured", [False, True], ids=("as it is", "captured"))
def test_buffers_that_change(captured, stand_in) -> None:
    """Given other memory, replaced, added with a module or alone: each counts one evaluation a step."""
    model = net()
    model.insert(0, Counter())
    optimizer = Acme(model, 0.1, acme=True, compile=captured)
    counts = []

    def train(steps):
        for i in range(steps):
            optimizer.step(make_closure(model, optimizer, batches()[i % 4]))
        counts.append([int(m.calls) for m in model if isinstance(m, Counter)])

    train(4)
    model[0].calls.data = model[0].calls.data.clone()
    train(4)
    model[0].calls = model[0].calls.clone()
    train(4)
    model[0].calls.data = model[0].calls.data.view(1)
    train(4)
    model.append(Counter())
    train(4)
    model[0].register_buffer("more", torch.ones(2))
    train(4)
    assert counts == [[4], [8], [12], [16], [20, 4], [24, 8]]
    if captured:
        assert all(optimizer._buffers.copies.graphs.values())


def test_options_that_change(stand_in) -> None:
    """What a graph holds as a constant is captured anew; with ever new values it is left as it is."""
    results = []
    for captured in (False, True):
        model = net()
        optimizer = Acme(model, 0.1, acme=True, asam=True, compile=captured)
        for i in range(3 * (acme.MOST_GRAPHS + 4)):
            optimizer.param_groups[0]["betas"] = (0.9 - 0.001 * (i // 3), 0.999)
            optimizer.param_groups[0]["rho"] = 1 + 0.01 * (i // 3)
            optimizer.step(make_closure(model, optimizer, batches()[i % 4]))
        results.append(vector(model.parameters()))
    assert len(graphs(optimizer)) == acme.MOST_GRAPHS
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", [MODES[8], MODES[14]], ids=mode_id)
def test_saved_averages_are_their_own(mode, tmp_path, stand_in) -> None:
    """The state, whose tensors share memory, survives saving and copying, and continues the same."""
    model = net()
    optimizer = Acme(model, start(mode), **mode, compile=True)
    data = batches()
    for i in range(5):
        optimizer.step(make_closure(model, optimizer, data[i % 4]))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state")
    weights, state = torch.load(tmp_path / "state", weights_only=True)
    other = net()
    other.load_state_dict(weights)
    resumed = Acme(other, start(mode), **mode, compile=True)
    resumed.load_state_dict(state)
    for i in range(5):
        optimizer.step(make_closure(model, optimizer, data[i % 4]))
        resumed.step(make_closure(other, resumed, data[i % 4]))
        assert torch.equal(vector(model.parameters()), vector(other.parameters()))
