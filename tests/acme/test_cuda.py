"""What only a CUDA device can show: the same numbers as on the CPU, and one wait for the device a step."""

import csv
from dataclasses import replace

import pytest
import torch
from common import MODES, all_modes, batches, make_closure, net, start, vector
from torch import nn

from acme import Acme
from benchmarks.device import waits
from icassp25 import train
from icassp25.capture import CapturedEvaluation
from icassp25.config import RunConfig
from icassp25.parts import Parts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def cuda_net(dtype=torch.float64) -> nn.Module:
    return net(dtype).cuda()


compiled = pytest.mark.parametrize("compile", [False, True], ids=("as it is", "compiled"))


@all_modes
@compiled
def test_same_as_on_the_cpu(mode, compile) -> None:
    """Compiled, the work is captured after a few steps (tests/acme/test_captured.py) and replayed from then on."""
    results = []
    for device in ("cpu", "cuda"):
        model = net().to(device)
        data = [(x.to(device), y.to(device)) for x, y in batches()]
        optimizer = Acme(
            model, start(mode), **mode, max_grad_norm=1.0, weight_decay=0.01,
            compile=compile and device == "cuda",
        )  # fmt: skip
        reports = []
        for i in range(25):
            optimizer.step(make_closure(model, optimizer, data[i % 4]))
            reports.append(optimizer.report)
        results.append((vector(model.parameters()).cpu(), reports))
    (cpu, reports), (cuda, others) = results
    torch.testing.assert_close(cpu, cuda, rtol=1e-6, atol=1e-8)
    assert [r.decision for r in reports] == [r.decision for r in others]
    assert [r.evaluations for r in reports] == [r.evaluations for r in others]
    assert not compile or len(optimizer._plan.graphs.graphs) >= 2


@all_modes
@compiled
def test_one_wait_a_step(mode, compile) -> None:
    model = cuda_net(torch.float32)
    x, y = (t.cuda() for t in batches(1, torch.float32)[0])
    optimizer = Acme(model, start(mode), **mode, max_grad_norm=1.0, compile=compile)
    closure = make_closure(model, optimizer, (x, y))
    for _ in range(6):
        optimizer.step(closure)
    assert waits(lambda: optimizer.step(closure)) == 1


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode["acme"] or mode["asam"]])
@compiled
def test_a_gradient_that_becomes_zero(mode, compile) -> None:
    """Noticed at the end of a step only: the step is taken anew, and the numbers are the CPU's."""
    results = []
    for device in ("cpu", "cuda"):
        model = net().to(device)
        x, y = (t.to(device) for t in batches(1)[0])
        optimizer = Acme(model, start(mode), **mode, compile=compile and device == "cuda")
        evaluations = 0

        def closure(model=model, optimizer=optimizer, x=x, y=y):
            nonlocal evaluations
            evaluations += 1
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            if 5 <= step < 8:  # noqa: B023
                model[0].weight.grad.zero_()
            return loss

        for step in range(10):
            before = model[0].weight.detach().clone()
            optimizer.step(closure)
            assert torch.equal(before, model[0].weight) == (5 <= step < 8)
        results.append((vector(model.parameters()).cpu(), [b.cpu() for b in model.buffers()], evaluations))
    (cpu, cpu_buffers, evaluated), (cuda, cuda_buffers, again) = results
    torch.testing.assert_close(cpu, cuda, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(cpu_buffers, cuda_buffers, rtol=1e-6, atol=1e-8)
    assert again - evaluated == 1 + mode["acme"] + mode["asam"]  # once, at the first of them


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode["acme"] or mode["asam"]])
@pytest.mark.parametrize("evaluation", [0, 1])
@compiled
def test_non_finite(mode, evaluation, compile) -> None:
    model = cuda_net()
    x, y = (t.cuda() for t in batches(1)[0])
    optimizer = Acme(model, start(mode), **mode, compile=compile)

    def spoil(call, loss):
        if call == evaluation + 1:
            model[0].weight.grad.fill_(torch.nan)
        return loss

    for _ in range(6):
        optimizer.step(make_closure(model, optimizer, (x, y)))
    before = vector(model.parameters()).clone(), [b.clone() for b in model.buffers()]
    averages = [s["exp_avg"].clone() for s in optimizer.state.values()]
    closure = make_closure(model, optimizer, (x, y), spoil)
    if evaluation == 1 and not mode["asam"]:
        optimizer.step(closure)
        assert optimizer.report.decision == -1
        assert torch.equal(before[0], vector(model.parameters()))
    else:
        with pytest.raises(FloatingPointError, match="start" if evaluation == 0 else "ASAM"):
            optimizer.step(closure)
        assert torch.equal(before[0], vector(model.parameters()))
        assert all(map(torch.equal, before[1], model.buffers()))
        assert all(map(torch.equal, averages, (s["exp_avg"] for s in optimizer.state.values())))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode["acme"]])
def test_float16_with_a_scaler(mode) -> None:
    model = cuda_net(torch.float32)
    x, y = (t.cuda() for t in batches(1, torch.float32)[0])
    optimizer, scaler = Acme(model, start(mode), **mode), torch.amp.GradScaler("cuda")

    def closure():
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        return loss

    losses = []
    for _ in range(30):
        losses.append(float(optimizer.step(closure, scaler=scaler)))
        scaler.update()
    assert losses[-1] < losses[0]


@all_modes
def test_a_captured_closure(mode) -> None:
    """The closure's own graph beside the optimizer's, with dropout: the numbers of the same without graphs."""
    results = []
    for captured in (False, True):
        model = net(torch.float32, dropout=0.2).cuda()
        x, y = (t.cuda() for t in batches(1, torch.float32)[0])
        optimizer = Acme(model, start(mode), **mode, compile=captured)

        def evaluate(x, y, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, y)
            loss.backward()
            return loss, logits

        torch.manual_seed(3)
        captured_evaluation = CapturedEvaluation(model, evaluate, x, y) if captured else None
        losses = []
        for _ in range(12):
            if captured_evaluation is not None:
                losses.append(float(optimizer.step(lambda c=captured_evaluation, x=x, y=y: c(x, y)[0])))
            else:
                losses.append(float(optimizer.step(lambda e=evaluate, x=x, y=y: e(x, y)[0])))
        results.append((torch.tensor(losses), vector(model.parameters()), list(model.buffers())))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


def test_parts_made_ready_beside_are_the_same() -> None:
    results = []
    for beside in (False, True):
        generator = torch.Generator("cuda").manual_seed(1)
        order = torch.randperm(60, generator=generator, device="cuda")

        def ready(chosen, generator=generator):
            torch.cuda._sleep(10_000_000)  # would be read too early, if it were not waited for
            return chosen + torch.rand(len(chosen), generator=generator, device="cuda"), chosen

        parts = Parts(order.split(25), ready, torch.device("cuda"))
        seen = []
        for inputs, targets in parts:
            seen += [inputs.clone(), targets.clone()]
            if beside:
                parts.prepare()
        results.append(torch.cat(seen))
    assert torch.equal(*results)


@pytest.mark.parametrize("switches", [{}, {"acme": True, "adam": True}], ids=("sgd", "acme+adam"))
def test_the_experiment_captured(switches, tmp_path) -> None:
    """`--compile` on CUDA changes results by rounding only, of an interrupted run too."""
    config = RunConfig(
        dataset="synthetic", train_images=800, batch_size=100, depth=4, width_alpha=1, epochs=2, device="cuda",
        lr=0.01, dropout=0.1, **switches,
    )  # fmt: skip
    errors = []
    for compile in (False, True):
        path = tmp_path / f"{compile}.csv"
        train.run(replace(config, compile=compile), path)
        errors.append([float(row["train_loss"]) for row in csv.DictReader(path.open())])
    assert errors[1] == pytest.approx(errors[0], rel=2e-3)
