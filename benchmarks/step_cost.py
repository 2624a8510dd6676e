"""What a step of the optimizer costs beside its peers, net of the closures.

Every optimizer steps on the same parameters and gradients, in turns; the closures return a constant loss and
leave the gradients as they are, so that the time is the optimizer's own. ACME's two losses are such that the
look-ahead is the better point: the case that costs most, since the second gradient enters the averages as well.

    python benchmarks/step_cost.py [--device cuda] [--repeats 15] [--sets wrn gpt small]

Rows: torch's optimizers and others; Acme as it is and with `compile=True`; on CUDA also compiled, `capturable` and
captured by the caller, as the experiment does it.

Columns: `ms`, the median over the repetitions; `ratio` to the peer in `peer` (the target where there is one);
`ns_per_param`; `memory`, the peak of what the optimizer allocates beyond parameters and gradients, with its
state, in copies of the parameters, and `state`, what of it stays. On CUDA also `waits`, how often a step waits for the
device (`torch.cuda.set_sync_debug_mode`), and `kernels`, how many it starts.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from common import parser, save, show, timed
from device import waits
from prodigyopt import Prodigy  # the extra 'benchmarks' has these two
from pytorch_optimizer import SAM
from torch import nn
from torch.profiler import ProfilerActivity, profile

from acme import Acme
from icassp25.capture import capture
from icassp25.config import RunConfig
from icassp25.models import Transformer, build_model

LR = 1e-6
WARM_UPS = 6  # steps that are not timed: what is compiled or captured is by then
CAPTURE_AFTER = 3  # of these

SLOWER = 1.25  # on a CPU, at most so many times the ratios that Acme had with a pass for each case

# By mode its peer, and what ratio is wanted at most for each of SETS: on a CPU (times SLOWER) and compiled there, on CUDA
# compiled and captured.
WAYS = ("cpu", "cpu, compiled", "cuda, compiled", "cuda, captured")
TARGETS: dict[str, tuple[Any, ...]] = {
    "Acme": ("SGD foreach", (2.20, 2.54, 1.02), (1.58, 1.83, 1.05), (1.5, 1.4, 0.5), (1.1, 1.1, 0.1)),
    "Acme adam": ("AdamW foreach", (1.10, 1.25, 0.48), (0.50, 0.56, 0.52), (1.3, 1.2, 0.3), (1.2, 1.1, 0.1)),
    "Acme acme": ("SGD foreach", (4.66, 5.20, 1.47), (3.75, 3.25, 1.40), (3.3, 3.0, 1.0), (2.6, 2.6, 0.1)),
    "Acme acme adam": ("AdamW foreach", (2.67, 2.92, 0.99), (1.09, 1.08, 0.78), (1.4, 1.2, 0.4), (1.2, 1.1, 0.1)),
    "Acme all four": ("AdamW foreach", (3.59, 3.68, 1.09), (1.68, 1.77, 1.26), (2.0, 1.8, 0.5), (1.8, 1.6, 0.1)),
}  # fmt: skip

MODES: dict[str, dict[str, bool]] = {
    "Acme": {},
    "Acme adam": {"adam": True},
    "Acme acme": {"acme": True},
    "Acme acme adam": {"acme": True, "adam": True},
    "Acme all four": {"acme": True, "adam": True, "asam": True, "nesterov": True},
}

SETS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "wrn": ("WRN-16-8", lambda: build_model(RunConfig(depth=16, width_alpha=8))),
    "gpt": ("GPT-2-like", lambda: Transformer(12, 384, dropout=0.0, classes=20_000, context=256)),
    "small": ("2000 x 100", lambda: nn.ParameterDict({f"weight{i}": torch.randn(100) for i in range(2000)})),
}


def contestants(model: nn.Module) -> dict[str, Callable[[], Any]]:
    """One function a contestant, which takes one step; its optimizer lives as long as the function."""
    params = list(model.parameters())
    losses = [torch.tensor(value, device=params[0].device) for value in (1.0, 0.9, 0.8)]

    def acme(captured: bool = False, **switches: bool) -> Callable[[], Any]:
        optimizer = Acme(list(model.named_parameters()), LR, capturable=captured, **switches)
        (group,) = optimizer.param_groups
        given = [losses[0]] * (1 + switches.get("asam", False))
        given += [losses[1]] * switches.get("acme", False)
        graphs: list[Callable[[], Any]] = []
        ordinary = itertools.count()

        def step() -> None:
            # Constant gradients look as if it could grow for ever.
            group["step_size"] = group["step_size"].fill_(LR) if captured else LR
            if captured and not graphs and next(ordinary) == CAPTURE_AFTER:
                pool = torch.cuda.graph_pool_handle()
                with optimizer.step_in_parts():
                    for loss in given:
                        part = getattr(optimizer, str(optimizer.next_part))
                        graphs.append(capture(params[0].device, partial(part, loss), pool)[0])
            if not graphs:
                optimizer.step(partial(next, iter(given)))
            for replay in graphs:
                replay()

        return step

    def peer(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[], Any]:
        optimizer = make(params, **options)
        return lambda: optimizer.step(lambda: losses[0])

    result = {
        "SGD foreach": peer(torch.optim.SGD, lr=LR, momentum=0.9, foreach=True),
        "AdamW foreach": peer(torch.optim.AdamW, lr=LR, foreach=True),
        "AdamW fused": peer(torch.optim.AdamW, lr=LR, fused=True),
        "LBFGS (1 iteration)": peer(torch.optim.LBFGS, lr=LR, max_iter=1, history_size=4),
        **{mode: acme(**switches) for mode, switches in MODES.items()},
        **{f"{mode}, compiled": acme(**switches, compile=True) for mode, switches in MODES.items()},
    }
    if params[0].device.type == "cuda":
        for mode, switches in MODES.items():
            result[f"{mode}, captured"] = acme(captured=True, **switches, compile=True)
    result["Prodigy"] = peer(Prodigy, lr=1.0)
    asam = SAM(params, torch.optim.SGD, adaptive=True, lr=LR, momentum=0.9)
    result["ASAM on SGD"] = lambda: asam.step(lambda: losses[0])
    return result


@contextmanager
def without_stderr() -> Iterator[None]:
    """Nothing on the process's stderr, to which the profiler writes when it starts and stops."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    yield
    os.dup2(kept, 2)


def memory(model: nn.Module, before: Callable[[], None]) -> dict[str, tuple[float, float]]:
    """Peak and remaining allocations of each contestant over its first steps, in copies of the parameters."""
    size, cuda = sum(p.numel() * p.element_size() for p in model.parameters()), torch.cuda
    result = {}
    for name, step in contestants(model).items():
        before()
        gc.collect()

        def steps(count: int, step: Callable[[], Any] = step) -> None:
            for _ in range(count):
                before()
                step()

        if next(model.parameters()).is_cuda:
            cuda.reset_peak_memory_stats()
            there = cuda.memory_allocated()
            steps(WARM_UPS)
            peak, now = cuda.max_memory_allocated() - there, cuda.memory_allocated() - there
        else:
            with (
                without_stderr(),
                profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
            ):
                steps(3)
            events = profiled.profiler.kineto_results.events()
            totals = list(itertools.accumulate(e.nbytes() for e in events if e.name() == "[memory]"))
            peak, now = max(totals), totals[-1]
        del step, steps
        result[name] = peak / size, now / size
    return result


def waits_and_kernels(step: Callable[[], Any], before: Callable[[], None]) -> tuple[int, int]:
    """How often a step waits for the CUDA device, and how many kernels it starts."""
    before()
    waited = waits(step)
    before()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    kernels = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())
    return waited, kernels


def measure(title: str, model: nn.Module, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    params = list(model.parameters())
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    elements = sum(p.numel() for p in params)
    steps = contestants(model)
    times: dict[str, list[float]] = {name: [] for name in steps}
    gradients = [p.grad for p in params]

    def give_gradients() -> None:  # some peers take them away
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient

    for turn in range(repeats + WARM_UPS):
        for name, step in steps.items():
            give_gradients()
            seconds = timed(step, device)
            if turn >= WARM_UPS:
                times[name].append(seconds)
    on_cuda = {}
    if device.type == "cuda":
        on_cuda = {name: waits_and_kernels(step, give_gradients) for name, step in steps.items()}
    del steps
    allocated = memory(model, give_gradients)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, seconds in medians.items():
        mode, _, how = name.partition(", ")
        peer, *targets = TARGETS.get(mode, ("SGD foreach",))
        wanted = dict(zip(WAYS, targets, strict=False)).get(f"{device.type}, {how}" if how else device.type)
        place = [other for other, _ in SETS.values()].index(title)
        slower = SLOWER if device.type == "cpu" else 1
        row = {
            "optimizer": name,
            "parameters": title,
            "tensors": len(params),
            "elements": elements,
            "ms": seconds * 1e3,
            "ratio": seconds / medians[peer],
            "peer": peer,
            "target": slower * wanted[place] if wanted else None,
            "ns_per_param": seconds / elements * 1e9,
            "memory": allocated[name][0],
            "state": allocated[name][1],
        }
        rows.append(row | dict(zip(("waits", "kernels"), on_cuda.get(name, ()), strict=False)))
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--repeats", type=int, default=15, help="timed steps of each optimizer (15)")
    arguments.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="parameter sets (all)")
    options = arguments.parse_args()
    begin = time.perf_counter()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(2)
    torch.manual_seed(0)
    rows = []
    for name in options.sets:
        title, make = SETS[name]
        measured = measure(title, make().to(device), device, options.repeats)
        first = measured[0]
        what = f"{title}: {first['tensors']} tensors, {first['elements']:,} elements"
        show(what, measured, hidden=("parameters", "tensors", "elements"))
        rows += measured
        save(f"step_cost-{device.type}", rows, device, begin, repeats=options.repeats)


if __name__ == "__main__":
    main()
