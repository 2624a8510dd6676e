"""What a step of the optimizer costs beside its peers, net of the closures.

Every optimizer steps on the same parameters and gradients, in turns; the closures return a constant loss and
leave the gradients as they are, so that the time is the optimizer's own. ACME's two losses are such that the
look-ahead is the better point: the case that costs most, since the second gradient enters the averages as well.

    python benchmarks/step_cost.py [--device cuda] [--repeats 15] [--sets wrn gpt small]

Rows: torch's optimizers and others; Acme as it is and with `compile=True`; on CUDA also compiled, `capturable` and
captured by the caller, as the experiment does it.

Columns: `ms`, the median over the repetitions; `ratio` to the peer in `peer` (the target where there is one);
`ns_per_param`; `copies`, how many times the parameters' size the arithmetic has to read or write at least, by
count (see COPIES), and `bandwidth`, what that is as a fraction of the bandwidth of a large copy measured on the
same device; `memory`, the peak of what the optimizer allocates beyond parameters and gradients, state included,
in copies of the parameters, and `state`, what of it stays. On CUDA also `waits`, how often a step waits for the
device (`torch.cuda.set_sync_debug_mode`), and `kernels`, how many it starts.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from common import save, show
from device import waits
from torch import nn

from acme import Acme
from icassp25.capture import capture
from icassp25.config import RunConfig
from icassp25.models import build_model

LR = 1e-6
WARM_UPS = 6  # steps that are not timed: what is compiled or captured is by then
CAPTURE_AFTER = 3  # of these

# Reads and writes of one copy of the parameters that the arithmetic cannot do without, from the stages in acme.py: the
# averages are written once all is known, and computed anew in each stage before that. With ACME the gradient and the
# weights of the start are copied, 4, since the second evaluation overwrites them.
COPIES = {
    "SGD foreach": 5,  # reads w, g, m; writes w, m
    "AdamW foreach": 7,  # reads w, g, m, v; writes w, m, v
    "AdamW fused": 7,
    "Acme": 7,  # sums: m, g; leap: as SGD
    "Acme adam": 10,  # sums: m, v, g; leap: as AdamW
    "Acme acme": 19,  # copies 4; sums 2; look: reads w, g, m, writes w; sums: m, g, g1; leap: reads 4, writes 2
    "Acme acme adam": 24,  # copies 4; sums 3; look: reads 4, writes w; sums 4; leap: reads 5, writes 3
    "Acme all four": 34,  # copies 6; norm: v, g, w; climb 4; sums 3; look: reads 5, writes w; sums and leap as above
}

# On CUDA all parameters are gathered and written back, on the CPU small ones: the latest gradient, the weights of a step
# that only leaps, and the weights after each move.
GATHERS = {"Acme": 6, "Acme adam": 6, "Acme acme": 6, "Acme acme adam": 6, "Acme all four": 8}

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


class Gpt(nn.Module):
    """The parameters of a GPT-2-like transformer: 12 blocks of width 384, 148 tensors, 29 million elements."""

    def __init__(
        self, width: int = 384, blocks: int = 12, vocabulary: int = 20_000, context: int = 256
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.LayerNorm(width),
                    nn.Linear(width, 3 * width),
                    nn.Linear(width, width),
                    nn.LayerNorm(width),
                    nn.Linear(width, 4 * width),
                    nn.Linear(4 * width, width),
                ]
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)


def wrn() -> nn.Module:
    return build_model(RunConfig(depth=16, width_alpha=8))


def small() -> nn.Module:
    return nn.ParameterDict({f"weight{i}": nn.Parameter(torch.randn(100)) for i in range(2000)})


SETS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "wrn": ("WRN-16-8", wrn),
    "gpt": ("GPT-2-like", Gpt),
    "small": ("2000 x 100", small),
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

        def capture_parts() -> None:
            pool = torch.cuda.graph_pool_handle()
            with optimizer.step_in_parts():
                for loss in given:
                    part = getattr(optimizer, str(optimizer.next_part))
                    graphs.append(capture(params[0].device, partial(part, loss), pool)[0])

        def step() -> None:
            # Constant gradients look as if it could grow for ever.
            group["step_size"] = group["step_size"].fill_(LR) if captured else LR
            if captured and not graphs and next(ordinary) == CAPTURE_AFTER:
                capture_parts()
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
    try:
        from prodigyopt import Prodigy
        from pytorch_optimizer import SAM
    except ImportError as error:
        raise SystemExit(
            f"{error}: install the extra 'benchmarks' (pip install -e '.[benchmarks]')."
        ) from None
    result["Prodigy"] = peer(Prodigy, lr=1.0)
    asam = SAM(params, torch.optim.SGD, adaptive=True, lr=LR, momentum=0.9)
    result["ASAM on SGD"] = lambda: asam.step(lambda: losses[0])
    return result


@contextmanager
def without_stderr() -> Iterator[None]:
    """Nothing on the process's stderr, to which the profiler writes when it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def memory(
    make: Callable[[nn.Module], dict[str, Callable[[], Any]]],
    model: nn.Module,
    before: Callable[[], None],
    device: torch.device,
) -> dict[str, tuple[float, float]]:
    """Peak and remaining allocations of each contestant over its first steps, in copies of the parameters."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    result = {}
    for name, step in make(model).items():
        before()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            there = torch.cuda.memory_allocated(device)
            for _ in range(WARM_UPS):
                before()
                step()
            peak, now = (
                torch.cuda.max_memory_allocated(device) - there,
                torch.cuda.memory_allocated(device) - there,
            )
        else:
            with (
                without_stderr(),
                torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
                ) as profile,
            ):
                for _ in range(3):
                    before()
                    step()
            assert profile.profiler is not None
            events = profile.profiler.kineto_results.events()
            changes = [event.nbytes() for event in events if event.name() == "[memory]"]
            totals = list(itertools.accumulate(changes))
            peak, now = max(totals), totals[-1]
        del step
        result[name] = peak / size, now / size
    return result


def waits_and_kernels(step: Callable[[], Any], before: Callable[[], None]) -> tuple[int, int]:
    """How often a step waits for the CUDA device, and how many kernels it starts."""
    before()
    waited = waits(step)
    before()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    kernels = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    return waited, kernels


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and write counted."""
    source = torch.randn(1 << 26, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        times.append(timed(lambda: target.copy_(source), device))
    return 2 * source.numel() * source.element_size() / statistics.median(times)


def timed(function: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def measure(
    title: str, model: nn.Module, device: torch.device, repeats: int, bandwidth: float
) -> list[dict[str, Any]]:
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
    device_numbers = (
        {name: waits_and_kernels(step, give_gradients) for name, step in steps.items()}
        if device.type == "cuda"
        else {}
    )
    del steps
    allocated = memory(contestants, model, give_gradients, device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, seconds in medians.items():
        mode, _, how = name.partition(", ")
        peer, *targets = TARGETS.get(mode, ("SGD foreach",))
        wanted = dict(zip(WAYS, targets, strict=False)).get(f"{device.type}, {how}" if how else device.type)
        most = wanted[[other for other, _ in SETS.values()].index(title)] if wanted else None
        if most is not None and device.type == "cpu":
            most *= SLOWER
        copies = COPIES.get(mode)
        if copies is not None and device.type == "cuda":
            copies += GATHERS.get(mode, 0)
        if how and mode == "Acme all four":
            copies += 1  # one form for all cases reads both gradients for Nesterov's term
        row = {
            "optimizer": name,
            "parameters": title,
            "tensors": len(params),
            "elements": elements,
            "ms": seconds * 1e3,
            "ratio": seconds / medians[peer],
            "peer": peer,
            "target": most,
            "ns_per_param": seconds / elements * 1e9,
            "copies": copies,
            "bandwidth": copies * elements * 4 / seconds / bandwidth if copies else None,
            "memory": allocated[name][0],
            "state": allocated[name][1],
        }
        if device.type == "cuda":
            row["waits"], row["kernels"] = device_numbers[name]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each optimizer (15)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="parameter sets (all)")
    options = parser.parse_args()
    begin = time.perf_counter()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(2)
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(device)
    print(f"copy bandwidth: {bandwidth / 1e9:.1f} GB/s, read and write counted")
    rows = []
    for name in options.sets:
        title, make = SETS[name]
        measured = measure(title, make().to(device), device, options.repeats, bandwidth)
        hidden = ("parameters", "tensors", "elements")
        show(
            f"{title}: {measured[0]['tensors']} tensors, {measured[0]['elements']:,} elements",
            [{key: value for key, value in row.items() if key not in hidden} for row in measured],
        )
        rows += measured
        seconds = time.perf_counter() - begin
        path = save(f"step_cost-{device.type}", rows, device, seconds,
                    copy_gb_per_s=round(bandwidth / 1e9, 1), repeats=options.repeats)  # fmt: skip
    print(f"\n{path} ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
