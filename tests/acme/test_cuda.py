"""What only a CUDA device can show: the same numbers as on the CPU, waits for the device counted, graphs of the caller."""

import csv
from dataclasses import replace

import pytest
import torch
from common import MODES, all_modes, batches, make_closure, net, start, vector
from torch import nn

from acme import Acme
from benchmarks.common import waits
from icassp25 import train
from icassp25.config import RunConfig
from icassp25.parts import Parts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def cuda_net(dtype=torch.float64) -> nn.Module:
    return net(dtype).cuda()


ways = pytest.mark.parametrize(
    "way",
    [{}, {"compile": True}, {"capturable": True}, {"compile": True, "capturable": True}],
    ids=lambda way: "+".join(way) or "-",
)


@all_modes
@ways
def test_same_as_on_the_cpu(mode, way) -> None:
    results = []
    for device in ("cpu", "cuda"):
        model = net().to(device)
        data = [(x.to(device), y.to(device)) for x, y in batches()]
        optimizer = Acme(
            model,
            start(mode),
            **mode,
            max_grad_norm=1.0,
            weight_decay=0.01,
            **(way if device == "cuda" else {}),
        )
        reports = []
        for i in range(25):
            optimizer.step(make_closure(model, optimizer, data[i % 4]))
            reports.append(optimizer.report)
        results.append((vector(model.parameters()).cpu(), reports))
    (cpu, reports), (cuda, others) = results
    torch.testing.assert_close(cpu, cuda, rtol=1e-6, atol=1e-8)
    assert [r.decision for r in reports] == [r.decision for r in others]
    assert [r.evaluations for r in reports] == [r.evaluations for r in others]


@all_modes
@ways
def test_one_wait_a_step_or_none(mode, way) -> None:
    model = cuda_net(torch.float32)
    x, y = (t.cuda() for t in batches(1, torch.float32)[0])
    optimizer = Acme(model, start(mode), **mode, max_grad_norm=1.0, **way)
    closure = make_closure(model, optimizer, (x, y))
    for _ in range(6):
        optimizer.step(closure)
    assert waits(lambda: optimizer.step(closure)) == (0 if way.get("capturable") else 1)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode["acme"] or mode["asam"]])
@pytest.mark.parametrize("evaluation", [0, 1])
@ways
def test_non_finite(mode, evaluation, way) -> None:
    model = cuda_net()
    x, y = (t.cuda() for t in batches(1)[0])
    optimizer = Acme(model, start(mode), **mode, **way)

    def spoil(call, loss):
        if call == evaluation + 1:
            model[0].weight.grad.fill_(torch.nan)
        return loss

    for _ in range(6):
        optimizer.step(make_closure(model, optimizer, (x, y)))
    before = vector(model.parameters()).clone(), [b.clone() for b in model.buffers()]
    averages = [s["exp_avg"].clone() for s in optimizer.state.values()]
    closure = make_closure(model, optimizer, (x, y), spoil)
    if evaluation == 1 and not mode["asam"] or way.get("capturable"):
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
@pytest.mark.parametrize("compile", [False, True], ids=("as it is", "compiled"))
def test_captured_by_the_caller(mode, compile) -> None:
    """As in docs/compile.md: evaluation and parts as graphs, with BatchNorm and dropout; the numbers of ordinary steps."""
    results = []
    for captured in (False, True):
        model = net(torch.float32, dropout=0.2).cuda()
        data = [(x.cuda(), y.cuda()) for x, y in batches(4, torch.float32)]
        x, y = (t.clone() for t in data[0])
        optimizer = Acme(model, start(mode), **mode, compile=compile and captured, capturable=captured)

        def evaluate(model=model, optimizer=optimizer, x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss.detach()

        torch.manual_seed(3)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimizer.step(evaluate)
            optimizer.zero_grad()
        torch.cuda.current_stream().wait_stream(stream)
        step = lambda optimizer=optimizer, evaluate=evaluate: optimizer.step(evaluate)
        if captured:
            evaluation, parts, buffers = torch.cuda.CUDAGraph(), [], list(model.buffers())
            kept = [buffer.clone() for buffer in buffers]
            with torch.cuda.graph(evaluation):
                loss = evaluate()
            with optimizer.step_in_parts():
                while optimizer.next_part is not None:
                    parts.append(torch.cuda.CUDAGraph())
                    with torch.cuda.graph(parts[-1]):
                        getattr(optimizer, optimizer.next_part)(loss)
                        first = len(parts) == 1
                        torch._foreach_copy_(*((kept, buffers) if first else (buffers, kept)))

            def step(evaluation=evaluation, parts=parts):
                generator = torch.cuda.get_rng_state()
                for part in parts:
                    torch.cuda.set_rng_state(generator)
                    evaluation.replay()
                    part.replay()

        for i in range(12):
            x.copy_(data[i % 4][0])
            y.copy_(data[i % 4][1])
            step()
        report = optimizer.report
        results.append((vector(model.parameters()), list(model.buffers()), report.loss, report.step_size))
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
