"""What a step of the optimizer costs beside its peers, net of the closures.

Every optimizer steps on the same parameters and gradients, in turns; the closures return a constant loss and
leave the gradients as they are, so that the time is the optimizer's own. ACME's two losses are such that the
look-ahead is the better point: the case that costs most, since the second gradient enters the averages as well.

    python benchmarks/step_cost.py [--device cuda] [--repeats 15] [--sets wrn gpt small]

Rows: torch's optimizers and others; Acme as it is and with `compile=True`; on CUDA also compiled, `capturable` and
captured by the caller, as the experiment does it.

Columns: `ms`, the median over the repetitions; `ratio` to the peer in `peer` (the target where there is one);
`memory`, the peak of what the optimizer allocates beyond parameters and gradients, with its state, in copies of the
parameters, and `state`, what of it stays. On CUDA also `waits`, how often a step waits for the device
(`torch.cuda.set_sync_debug_mode`), and `kernels`, how many it starts.
"""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from common import medians, parser, save, show, waits
from prodigyopt import Prodigy  # the extra 'benchmarks' has these two
from pytorch_optimizer import SAM
from torch import nn
from torch.profiler import ProfilerActivity, profile

from acme import Acme
from icassp25.capture import capture
from icassp25.config import RunConfig
from icassp25.models import Transformer, build_model

os.environ["KINETO_LOG_LEVEL"] = "9"  # else the profiler says whenever it starts and stops

LR = 1e-6
WARM_UPS = 6  # steps that are not timed: what is compiled or captured is by then

SETS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "wrn": ("WRN-16-8", lambda: build_model(RunConfig(depth=16, width_alpha=8))),
    "gpt": ("GPT-2-like", lambda: Transformer(12, 384, dropout=0.0, classes=20_000, context=256)),
    "small": ("2000 x 100", lambda: nn.ParameterDict({f"weight{i}": torch.randn(100) for i in range(2000)})),
}
ADAM, ACME, ALL = dict(adam=True), dict(acme=True), dict(acme=True, adam=True, asam=True, nesterov=True)
# Each mode's switches, and the ratio that is wanted of it at most: in each of WAYS, for each of SETS. On a CPU that is
# 1.25 times what Acme had when each case was a pass of its own.
WAYS = ("cpu", "cpu, compiled", "cuda, compiled", "cuda, captured")
MODES: dict[str, tuple[Any, ...]] = {
    "Acme": ({}, (2.75, 3.175, 1.275), (1.975, 2.288, 1.313), (1.5, 1.4, 0.5), (1.1, 1.1, 0.1)),
    "Acme adam": (ADAM, (1.375, 1.563, 0.6), (0.625, 0.7, 0.65), (1.3, 1.2, 0.3), (1.2, 1.1, 0.1)),
    "Acme acme": (ACME, (5.825, 6.5, 1.838), (4.688, 4.063, 1.75), (3.3, 3.0, 1.0), (2.6, 2.6, 0.1)),
    "Acme acme adam": (ACME | ADAM, (3.338, 3.65, 1.238), (1.363, 1.35, 0.975), (1.4, 1.2, 0.4), (1.2, 1.1, 0.1)),
    "Acme all four": (ALL, (4.488, 4.6, 1.363), (2.1, 2.213, 1.575), (2.0, 1.8, 0.5), (1.8, 1.6, 0.1)),
}  # fmt: skip


def contestants(model: nn.Module) -> dict[str, Callable[[], Any]]:
    """One function a contestant, which takes one step; its optimizer lives as long as the function."""
    params = list(model.parameters())
    gradients = [p.grad for p in params]
    device = params[0].device
    loss, better = torch.tensor(1.0, device=device), torch.tensor(0.9, device=device)

    def peer(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[], Any]:
        return partial(make(params, **options).step, lambda: loss)

    def acme(captured: bool = False, **switches: bool) -> Callable[[], Any]:
        optimizer = Acme(list(model.named_parameters()), LR, capturable=captured, **switches)
        (group,) = optimizer.param_groups
        losses = [loss] * (1 + switches.get("asam", False)) + [better] * switches.get("acme", False)
        steps, graphs = itertools.count(), []

        def step() -> None:
            # Constant gradients look as if it could grow for ever.
            group["step_size"] = group["step_size"].fill_(LR) if captured else LR
            if captured and next(steps) == WARM_UPS // 2:
                pool = torch.cuda.graph_pool_handle()
                with optimizer.step_in_parts():
                    for value in losses:
                        part = partial(getattr(optimizer, str(optimizer.next_part)), value)
                        graphs.append(capture(device, part, pool)[0])
            for replay in graphs:
                replay()
            if not graphs:
                optimizer.step(partial(next, iter(losses)))

        return step

    def give_gradients() -> None:  # SAM takes them away
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient

    asam = SAM(params, torch.optim.SGD, adaptive=True, lr=LR, momentum=0.9)
    ways = {"": {}, ", compiled": dict(compile=True)}
    if device.type == "cuda":
        ways[", captured"] = dict(compile=True, captured=True)
    return {
        "SGD foreach": peer(torch.optim.SGD, lr=LR, momentum=0.9, foreach=True),
        "AdamW foreach": peer(torch.optim.AdamW, lr=LR, foreach=True),
        "AdamW fused": peer(torch.optim.AdamW, lr=LR, fused=True),
        "LBFGS (1 iteration)": peer(torch.optim.LBFGS, lr=LR, max_iter=1, history_size=4),
        **{mode + way: acme(**MODES[mode][0], **how) for way, how in ways.items() for mode in MODES},
        "Prodigy": peer(Prodigy, lr=1.0),
        "ASAM on SGD": lambda: asam.step(give_gradients),
    }


def allocated(step: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that the first steps allocate: at most, and what stays."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        for _ in range(WARM_UPS):
            step()
    events = profiled.profiler.kineto_results.events()
    totals = list(itertools.accumulate(e.nbytes() for e in events if e.name() == "[memory]"))
    return max(totals), totals[-1]


def kernels(step: Callable[[], Any]) -> int:
    """How many a step starts on the CUDA device."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())


def measure(name_of_set: str, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    title, make = SETS[name_of_set]
    model = make().to(device)
    params = list(model.parameters())
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    elements = sum(p.numel() for p in params)
    size = sum(p.nbytes for p in params)
    steps = contestants(model)
    seconds = medians(steps, repeats, WARM_UPS)
    on_cuda = {}
    if device.type == "cuda":
        on_cuda = {name: dict(waits=waits(step), kernels=kernels(step)) for name, step in steps.items()}
    del steps
    rows = []
    for name, first_steps in contestants(model).items():
        peak, state = allocated(first_steps)
        mode = name.partition(", ")[0]
        switches, *targets = MODES.get(mode, ({},))
        peer = "AdamW foreach" if "adam" in switches else "SGD foreach"
        wanted = dict(zip(WAYS, targets, strict=False)).get(name.replace(mode, device.type))
        rows.append({
            "optimizer": name, "parameters": title, "tensors": len(params), "elements": elements,
            "ms": 1000 * seconds[name], "ratio": seconds[name] / seconds[peer], "peer": peer,
            "target": wanted and wanted[list(SETS).index(name_of_set)],
            "memory": peak / size, "state": state / size, **on_cuda.get(name, {}),
        })  # fmt: skip
    return rows


def main() -> None:
    arguments = parser(__doc__, device=True)
    arguments.add_argument("--repeats", type=int, default=15, help="timed steps of each optimizer (15)")
    arguments.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="parameter sets (all)")
    options = arguments.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rows = []
    for name in options.sets:
        measured = measure(name, device, options.repeats)
        what = "{parameters}: {tensors} tensors, {elements:,} elements".format(**measured[0])
        show(what, pd.DataFrame(measured).drop(columns=["parameters", "tensors", "elements"]))
        rows += measured
        save(f"step_cost-{device.type}", rows, device, repeats=options.repeats)


if __name__ == "__main__":
    main()
