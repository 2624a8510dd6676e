"""What a step of ACME's peers takes, beside a step of ACME: the price of a run in seconds.

    python benchmarks/peers.py --study short [--turns 8] [--steps 20]

The runs of a sweep share their machine with others, so that their seconds do not compare. Here each optimizer of
`results/STUDY/peers`, with the options of its run from the default scale, trains the same batches in turn with the
others, in one process, on an otherwise idle machine: forward, backward and optimizer, without augmentation and tests.
Each first takes 100 steps, after which ACME with `adapt_steps` keeps its step size, then `--turns` times `--steps`
steps. Runs with `adapt_every`, which is no longer an option, are left out.

Columns: `optimizer`, as in the names of the runs; `step_ms`, the median over the turns; `to_sgd`, its ratio to SGD's;
`evaluations`, gradient evaluations a step in the timed steps. Written to results/benchmarks/peers-STUDY.csv, from
which the tables and figures of the peers take their seconds.
"""

from __future__ import annotations

import json
from functools import partial

import pandas as pd
import torch
from common import ROOT, medians, parser, save, show

from acme import Acme
from icassp25 import tasks, train
from icassp25.config import RunConfig

WARM_STEPS = 100


def take_steps(experiment: train.Experiment, batches: list[tasks.Examples]) -> None:
    tally = train.Tally(experiment.device)
    for inputs, targets in batches:
        experiment._step(inputs, targets, tally)


def configurations(study: str) -> dict[str, RunConfig]:
    """The options of every optimizer's run from the default scale, of the first seed, by the runs' names."""
    found: dict[str, RunConfig] = {}
    for path in sorted((ROOT / "results" / study / "peers").glob("*.x1.seed*.json")):
        name = path.name.split(".")[0]
        found.setdefault(name, RunConfig.from_dict(json.loads(path.read_text())["options"]))
    return {k: v for k, v in found.items() if not k.endswith(("-half", "-equal")) and v.adapt_every == 1}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--study", required=True, help="a folder of results/ with runs beside peers")
    arguments.add_argument("--turns", type=int, default=8, help="timed, of each optimizer (8)")
    arguments.add_argument("--steps", type=int, default=20, help="of a turn (20)")
    options = arguments.parse_args()
    configs = configurations(options.study)
    if "sgd" not in configs:
        arguments.error(f"results/{options.study}/peers holds no run of SGD (scripts/sweep_peers.sh)")
    first = configs["sgd"]
    device = train.resolve_device(first)
    task = tasks.load(first, device)
    generator = torch.Generator(device).manual_seed(first.seed)
    order = task.order(generator)[: options.steps * first.batch_size]
    inputs, targets = task.training(order, generator)
    batches = list(zip(inputs.split(first.batch_size), targets.split(first.batch_size), strict=True))
    experiments = {name: train.Experiment(config, task, device, Acme) for name, config in configs.items()}
    for experiment in experiments.values():
        experiment.model.train()
        if experiment.peer:
            experiment.peer.train()
        while experiment.progress.steps < WARM_STEPS:
            take_steps(experiment, batches)
        experiment.progress = train.Progress()
    turns = {name: partial(take_steps, experiment, batches) for name, experiment in experiments.items()}
    seconds = medians(turns, options.turns) / len(batches)
    table = pd.DataFrame({"step_ms": 1000 * seconds, "to_sgd": seconds / seconds["sgd"]})
    table["evaluations"] = [each.progress.evaluations / each.progress.steps for each in experiments.values()]
    table = table.reset_index(names="optimizer")
    show(f"A step beside peers, {options.study}", table)
    save(f"peers-{options.study}", table, device, turns=options.turns, steps=options.steps)


if __name__ == "__main__":
    main()
