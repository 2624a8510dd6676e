"""What a step of the optimizer costs beside its peers, net of the closures.

Every optimizer steps on the same parameters and gradients, in turns; the closures return a constant loss and
leave the gradients as they are, so that the time is the optimizer's own. ACME's two losses are such that the
look-ahead is the better point: the case that costs most, since the second gradient enters the averages as well.

    python benchmarks/step_cost.py [--device cuda] [--repeats 15] [--sets wrn gpt small]

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
from typing import Any

import torch
from common import save, show
from device import waits
from torch import Tensor, nn

from acme import Acme
from icassp25.config import RunConfig
from icassp25.models import build_model

LR = 1e-6
WARM_UPS = 6  # steps that are not timed: what is compiled, and on CUDA captured, is by then

# Reads and writes of one copy of the parameters that the arithmetic cannot do without, from the passes in
# acme.py: sums need the whole gradient before the averages can be updated, so every update is a second pass.
COPIES = {
    "SGD foreach": 5,  # reads w, g, m; writes w, m
    "AdamW foreach": 7,  # reads w, g, m, v; writes w, m, v
    "AdamW fused": 7,
    "Acme": 7,  # sums: m, g; update: as SGD
    "Acme adam": 10,  # sums: m, v, g; update: as AdamW
    "Acme acme": 11,  # sums and look-ahead: reads w, g, m, writes w and two copies; sums and leap: reads 3, writes 2
    "Acme acme adam": 20,  # look-ahead: reads 4, writes 3; leap: reads 5, writes 3; second update: reads 3, writes 2
    "Acme all four": 29,  # norm: reads 3, writes 3; ascent 3; look-ahead: reads 5, writes 2; leap and update as above
}

# Compiled, that is so as well but for the second sums of `acme` with `adam`, which come alone: 4, and 8 of the leap.
COMPILED_COPIES = {**COPIES, "Acme acme adam": 19, "Acme all four": 29}

# On CUDA as it is, where the host does not wait for the sums, each of them comes alone, and so does ASAM's norm.
CUDA_COPIES = {**COPIES, "Acme acme": 15, "Acme acme adam": 22, "Acme all four": 31}

TARGETS = {  # mode: (peer, at most)
    "Acme": ("SGD foreach", 1.6),
    "Acme adam": ("AdamW foreach", 1.2),
    "Acme acme": ("SGD foreach", 3.5),
    "Acme acme adam": ("AdamW foreach", 2.0),
    "Acme all four": ("AdamW foreach", 3.0),
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

    def acme(**switches: bool) -> Callable[[], Any]:
        optimizer = Acme(list(model.named_parameters()), LR, **switches)
        calls = [0]

        def closure() -> Tensor:
            calls[0] += 1
            return losses[0] if calls[0] <= switches.get("asam", False) + 1 else losses[1]

        def step() -> None:
            calls[0] = 0
            optimizer.param_groups[0]["step_size"] = (
                LR  # constant gradients look as if it could grow for ever
            )
            optimizer.step(closure)

        return step

    def peer(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[], Any]:
        optimizer = make(params, **options)
        return lambda: optimizer.step(lambda: losses[0])

    result = {
        "SGD foreach": peer(torch.optim.SGD, lr=LR, momentum=0.9, foreach=True),
        "AdamW foreach": peer(torch.optim.AdamW, lr=LR, foreach=True),
        "AdamW fused": peer(torch.optim.AdamW, lr=LR, fused=True),
        "LBFGS (1 iteration)": peer(torch.optim.LBFGS, lr=LR, max_iter=1, history_size=4),
        "Acme": acme(),
        "Acme adam": acme(adam=True),
        "Acme acme": acme(acme=True),
        "Acme acme adam": acme(acme=True, adam=True),
        "Acme all four": acme(acme=True, adam=True, asam=True, nesterov=True),
        "Acme, compiled": acme(compile=True),
        "Acme adam, compiled": acme(adam=True, compile=True),
        "Acme acme, compiled": acme(acme=True, compile=True),
        "Acme acme adam, compiled": acme(acme=True, adam=True, compile=True),
        "Acme all four, compiled": acme(acme=True, adam=True, asam=True, nesterov=True, compile=True),
    }
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
        mode, compiled, _ = name.partition(", compiled")
        peer, most = TARGETS.get(mode, ("SGD foreach", None))
        as_it_is = CUDA_COPIES if device.type == "cuda" else COPIES
        copies = (COMPILED_COPIES if compiled else as_it_is).get(mode)
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
