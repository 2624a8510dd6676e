"""Learning rate finders beside each other: what they say, how far it jumps with the seed, what a training makes of it.

    python benchmarks/find_lr.py [--tasks cifar100 text digits noisy]

`steepest` and `valley` take the learning rate range test, with the constants of torch-lr-finder: rates from 1e-7 to 10 in
a hundred steps, until the smoothed loss is five times its least. `steepest` is the rate where that falls fastest,
`valley`, of fastai, the one in the middle of the longest fall. `acme` is `acme.find_lr`; tried as well: another gain
afterwards, the largest step size of the sixty steps, a hundred steps; `path`, of research/path_lr.py, which looks back.

Written to results/benchmarks/find_lr.csv, of each task, optimizer and finder: `lr`, the median over seeds 42 to 46;
`spread`, largest over smallest; `none`, seeds without a rate; `evaluations` of loss and gradient; `error`, the mean test
error in % of trainings of seeds 42 to 44, each with its own rate and a cosine to 0. The rows of `grid` are trainings with
one rate for all, and `best` is the least of them, which nobody knows beforehand. The rates are those of
`torch.optim.SGD(momentum=0.9)` and of `AdamW`. CIFAR-100 is not trained here: runs of the preset `small` are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from common import parser, save, show
from torch import Tensor, nn

import acme
from icassp25 import tasks
from icassp25.config import RunConfig
from icassp25.models import build_model
from research.path_lr import path_lr

SEEDS = range(42, 47)
TRAINED = SEEDS[:3]
OPTIMIZERS = {"SGD": functools.partial(torch.optim.SGD, momentum=0.9), "AdamW": torch.optim.AdamW}
RATES = {"SGD": np.logspace(-3, 1, 9), "AdamW": np.logspace(-4.5, -0.5, 9)}  # the grid
TEST_RATES = np.logspace(-7, 1, 100)
CONFIGS = {  # of the presets, and of a task that is none
    "cifar100": RunConfig(depth=4, width_alpha=1),
    "text": RunConfig(dataset="text", train_images=2400, batch_size=16, label_smoothing=0.0, epochs=4),
    "digits": RunConfig(dataset="digits", batch_size=32, label_smoothing=0.0, epochs=20),
    "noisy": RunConfig(dataset="noisy", train_images=4000, batch_size=32, label_smoothing=0.0, epochs=10),
}


class Noisy(tasks.Task):
    """20 features, 10 classes of a random linear teacher; labels to train on are right in 65 of 100."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(6000, 20, generator=draw)
        right = (inputs @ torch.randn(20, 10, generator=draw)).argmax(1)
        some = torch.rand(6000, generator=draw) < 0.35
        labels = torch.where(some, torch.randint(10, (6000,), generator=draw), right)
        super().__init__((inputs[:4000], labels[:4000]), None, (inputs[4000:], right[4000:]))

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(4000, generator=generator)


@functools.cache
def load(name: str) -> tasks.Task:
    return Noisy() if name == "noisy" else tasks.load(CONFIGS[name], torch.device("cpu"))


def problem(name: str, seed: int) -> tuple[nn.Module, Iterator[Callable[[], Tensor]]]:
    """A model and closures of batches for it, epoch after epoch, all from one seed."""
    config, task = CONFIGS[name], load(name)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if name == "noisy":
        model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    else:
        model = build_model(config)

    def batches() -> Iterator[tasks.Examples]:
        while True:
            order = task.order(generator)[: config.steps_per_epoch * config.batch_size]
            for chosen in order.split(config.batch_size):
                yield task.training(chosen, generator)

    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    return model, acme.closures(model, batches(), criterion)


def range_test(name: str, optimizer: str, seed: int) -> list[float]:
    """The smoothed loss at each of `TEST_RATES`, as far as the test came."""
    model, closures = problem(name, seed)
    testing, losses = OPTIMIZERS[optimizer](model.parameters()), []
    for rate, closure in zip(TEST_RATES, closures, strict=False):
        testing.param_groups[0]["lr"] = rate
        loss = testing.step(closure).item()
        losses.append(0.05 * loss + 0.95 * losses[-1] if losses else loss)
        if not losses[-1] < 5 * min(losses):
            break
    return losses


def steepest(losses: np.ndarray) -> float:
    """The rate at which the loss falls fastest; not one of the first ten, nor the last five."""
    return float(TEST_RATES[10 + np.gradient(losses[10:-5]).argmin()])


def valley(losses: np.ndarray) -> float:
    """The rate in the middle of the longest fall: of the longest falling subsequence, as fastai counts it."""
    lengths = np.ones(len(losses), dtype=int)
    for i in range(1, len(losses)):
        higher = lengths[:i][losses[:i] > losses[i]]
        lengths[i] = 1 + higher.max(initial=0)
    end, third = int(lengths.argmax()), lengths.max() / 3
    return float(TEST_RATES[end - lengths[end] + int(third) + int(third / 2)])


def rates(name: str, optimizer: str, seed: int) -> dict[str, tuple[float | None, int]]:
    """Of each finder: the rate, and the evaluations that it took."""
    losses = range_test(name, optimizer, seed)
    finite = np.array(losses)[np.isfinite(losses)]
    said = {"steepest": (steepest(finite), len(losses)), "valley": (valley(finite), len(losses))}
    adam = optimizer == "AdamW"
    sixty, hundred = (acme.find_lr(*problem(name, seed), adam=adam, steps=steps) for steps in (60, 100))
    sizes = [report.step_size for report in sixty.trace]
    factors = {
        "acme": 1.0, "acme, gain 1 afterwards": 0.5, "acme, gain 4 afterwards": 2.0,
        "acme, largest step size": max(sizes) / sizes[-1],
    }  # fmt: skip
    said |= {finder: (sixty.lr and sixty.lr * each, sixty.evaluations) for finder, each in factors.items()}
    said["path"] = path_lr(*problem(name, seed), OPTIMIZERS[optimizer])
    return said | {"acme, 100 steps": (hundred.lr, hundred.evaluations)}


@functools.cache
def train(name: str, optimizer: str, seed: int, lr: float) -> float:
    """The test error in % of a training with a cosine to 0; that of chance where it fails."""
    (model, closures), task, config = problem(name, seed), load(name), CONFIGS[name]
    training = OPTIMIZERS[optimizer](model.parameters(), lr=lr)
    steps = config.epochs * config.steps_per_epoch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(training, steps)
    for _, closure in zip(range(steps), closures, strict=False):
        training.step(closure)
        schedule.step()
    inputs, targets = task.test
    with torch.no_grad():
        wrong = model.eval()(task.inputs(inputs)).argmax(1) != targets
    return 100 * wrong.float().mean().item()


def rows_of(name: str, optimizer: str) -> list[dict[str, object]]:
    about = {"task": name, "optimizer": optimizer}

    def error(rates: dict[int, float | None]) -> float | None:
        """The mean of the trainings; none where a seed has no rate."""
        if name == "cifar100" or any(rates[seed] is None for seed in TRAINED):
            return None
        return np.mean([train(name, optimizer, seed, rates[seed]) for seed in TRAINED])

    said = {seed: rates(name, optimizer, seed) for seed in SEEDS}
    rows = []
    for finder, (_, evaluations) in said[SEEDS[0]].items():
        found = {seed: each[finder][0] for seed, each in said.items()}
        lr = pd.Series(found, dtype=float)
        rows.append(about | {
            "finder": finder, "lr": lr.median(), "spread": lr.max() / lr.min(), "none": lr.isna().sum(),
            "evaluations": evaluations, "error": error(found),
        })  # fmt: skip
    if name != "cifar100":
        grid = [
            {"finder": "grid", "lr": lr, "error": error(dict.fromkeys(SEEDS, lr))} for lr in RATES[optimizer]
        ]
        best = min(grid, key=lambda row: row["error"]) | {"finder": "best of the grid"}
        rows += [about | row for row in (best, *grid)]
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tasks", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    torch.set_num_threads(1)
    rows = []
    for name in arguments.parse_args().tasks:
        for optimizer in OPTIMIZERS:
            more = rows_of(name, optimizer)
            show(f"{name}, {optimizer}", more)
            rows += more
            save("find_lr", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
