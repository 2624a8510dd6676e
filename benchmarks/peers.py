"""What a step of ACME's peers takes, beside a step of ACME: the price of a run in seconds.

    python benchmarks/peers.py --study short [--turns 8] [--steps 20]

The runs of a sweep share their machine with others, so that their seconds do not compare. Here each optimizer of
`results/STUDY/peers`, with the options of its run from the default scale, trains the same batches in turn with the
others, in one process, on an otherwise idle machine: forward, backward and optimizer, without augmentation and tests.
Each first takes 60 steps, after which ACME with `adapt_steps` keeps its step size, then `--turns` times `--steps`
steps. Runs with `adapt_every`, which is no longer an option, are left out.

Columns: `optimizer`, as in the names of the runs; `step_ms`, the median over the turns; `to_sgd`, its ratio to SGD's;
`evaluations`, gradient evaluations a step in the timed steps. Written to results/benchmarks/peers-STUDY.csv, from
which the tables and figures of the peers take their seconds.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, field, replace

import torch
from common import ROOT, parser, save, show, timed

from acme import Acme
from icassp25 import tasks, train
from icassp25.config import RunConfig

WARM_STEPS = 60


@dataclass
class Contestant:
    name: str
    experiment: train.Experiment
    times: list[float] = field(default_factory=list)  #: of a step, turn by turn
    evaluations: list[float] = field(default_factory=list)

    def train(self, batches: list[tasks.Examples], count: bool) -> None:
        experiment = self.experiment
        experiment.model.train()
        if experiment.peer:
            experiment.peer.train()
        tally, before = train.Tally(experiment.device), experiment.progress.evaluations

        def steps() -> None:
            for inputs, targets in batches:
                experiment._step(inputs, targets, tally)

        seconds = timed(steps, experiment.device)
        if count:
            self.times.append(seconds / len(batches))
            self.evaluations.append((experiment.progress.evaluations - before) / len(batches))


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
    begin = time.perf_counter()
    configs = configurations(options.study)
    if "sgd" not in configs:
        arguments.error(f"results/{options.study}/peers holds no run of SGD (scripts/sweep_peers.sh)")
    first = replace(configs["sgd"], threads=torch.get_num_threads())
    device = train.resolve_device(first)
    task = tasks.load(first, device)
    generator = torch.Generator(device).manual_seed(first.seed)
    order = task.order(generator)[: options.steps * first.batch_size]
    inputs, targets = task.training(order, generator)
    batches = list(zip(inputs.split(first.batch_size), targets.split(first.batch_size), strict=True))
    contestants = [
        Contestant(name, train.Experiment(config, task, device, Acme)) for name, config in configs.items()
    ]
    for contestant in contestants:
        for _ in range(-(-WARM_STEPS // len(batches))):
            contestant.train(batches, count=False)
    for _ in range(options.turns):
        for contestant in contestants:
            contestant.train(batches, count=True)
    medians = {contestant.name: statistics.median(contestant.times) for contestant in contestants}
    rows = [
        {
            "optimizer": contestant.name,
            "step_ms": 1000 * medians[contestant.name],
            "to_sgd": medians[contestant.name] / medians["sgd"],
            "evaluations": statistics.mean(contestant.evaluations),
        }
        for contestant in contestants
    ]
    show(f"A step beside peers, {options.study}", rows)
    save(f"peers-{options.study}", rows, device, begin, turns=options.turns, steps=options.steps)


if __name__ == "__main__":
    main()
