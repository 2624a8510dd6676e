"""Learning rate finders beside each other: what they say, how far it jumps with the seed, what a training makes of it.

    python benchmarks/find_lr.py [--tasks cifar100 text digits noisy]

`steepest` and `valley` take the learning rate range test, with the constants of torch-lr-finder: rates from 1e-7 to 10 in
a hundred steps, until the smoothed loss is five times its least. `steepest` is the rate where that falls fastest,
`valley`, of fastai, the one in the middle of the longest fall. `acme` is `acme.find_lr`; the rows behind it are tried variations: another gain
afterwards, the largest step size of the sixty steps, a hundred steps.

Written to results/benchmarks/find_lr.csv, of each task, optimizer and finder: `lr`, the median over seeds 42 to 46;
`spread`, largest over smallest; `none`, seeds without a rate; `evaluations` of loss and gradient; `error`, the mean test
error in % of three trainings, seeds 42 to 44, with that seed's rate and a cosine to 0. The rows of `grid` are trainings with one rate for
all, and `best` is the least of them, which nobody knows beforehand. The rates are those of `torch.optim.SGD(momentum=0.9)` and
of `AdamW`. CIFAR-100 is not trained here: runs of the preset `small` are.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from common import save, show
from torch import Tensor, nn

import acme
from icassp25 import tasks
from icassp25.config import RunConfig
from icassp25.models import build_model

SEEDS = range(42, 47)
TRAINED = 3  # of these seeds
RATES = {False: np.logspace(-3, 1, 9), True: np.logspace(-4.5, -0.5, 9)}  # the grid: of SGD, and of AdamW
TEST_RATES = np.logspace(-7, 1, 100)
OPTIONS = {  # of the presets
    "cifar100": dict(model="WRN", depth=4, width_alpha=1, batch_size=200),
    "text": dict(train_images=2400, batch_size=16, label_smoothing=0.0, epochs=4),
    "digits": dict(batch_size=32, label_smoothing=0.0, epochs=20),
}
Batch = tuple[Tensor, Tensor]


class Problem:
    """A model, its batches and its test, all from one seed."""

    def __init__(self, name: str, seed: int) -> None:
        config = RunConfig(dataset=name, seed=seed, **OPTIONS[name])
        self.task, self.batch_size, self.epochs = load(name), config.batch_size, config.epochs
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.model = build_model(config)

    def epoch(self) -> Iterator[Batch]:
        order = self.task.order(self.generator)
        for chosen in order.split(self.batch_size)[: len(order) // self.batch_size]:
            yield self.task.training(chosen, self.generator)

    def batches(self) -> Iterator[Batch]:
        while True:
            yield from self.epoch()

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(self.model(inputs), targets)

    @torch.no_grad()
    def error(self) -> float:
        self.model.eval()
        parts = zip(*(part.split(1000) for part in self.task.test), strict=True)
        wrong = [(self.model(self.task.inputs(x)).argmax(1) != y).float().flatten() for x, y in parts]
        return 100 * torch.cat(wrong).mean().item()


@functools.cache
def load(name: str) -> tasks.Task:
    return tasks.load(RunConfig(dataset=name, **OPTIONS[name]), torch.device("cpu"))


class Noisy(Problem):
    """20 features, 10 classes of a random linear teacher; labels right in 65 of 100; an MLP of 64 with BatchNorm."""

    batch_size, epochs = 32, 10

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(6000, 20, generator=draw)
        right = (inputs @ torch.randn(20, 10, generator=draw)).argmax(1)
        some = torch.rand(6000, generator=draw) < 0.35
        labels = torch.where(some, torch.randint(10, (6000,), generator=draw), right)
        self.train, self.test = (inputs[:4000], labels[:4000]), (inputs[4000:], right[4000:])
        self.criterion, self.task = nn.CrossEntropyLoss(), self
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(4000, generator=generator)

    def training(self, chosen: Tensor, generator: torch.Generator) -> Batch:
        return self.train[0][chosen], self.train[1][chosen]

    def inputs(self, examples: Tensor) -> Tensor:
        return examples


def problem(name: str, seed: int) -> Problem:
    return Noisy(seed) if name == "noisy" else Problem(name, seed)


def optimizer_for(model: nn.Module, adam: bool, lr: float) -> torch.optim.Optimizer:
    if adam:
        return torch.optim.AdamW(model.parameters(), lr=lr)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def range_test(at: Problem, adam: bool) -> tuple[np.ndarray, int]:
    """The smoothed loss at each of `TEST_RATES`, as far as the test came; and the evaluations."""
    optimizer, losses = optimizer_for(at.model, adam, 0.0), []
    for rate, batch in zip(TEST_RATES, at.batches(), strict=False):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = at.loss(*batch)
        loss.backward()
        optimizer.step()
        losses.append(0.05 * loss.item() + 0.95 * losses[-1] if losses else loss.item())
        if not losses[-1] < 5 * min(losses):
            break
    return np.array([loss for loss in losses if np.isfinite(loss)]), len(losses)


def steepest(losses: np.ndarray) -> float:
    """The rate at which the loss falls fastest; not one of the first ten, nor the last five."""
    return float(TEST_RATES[10 + np.gradient(losses[10:-5]).argmin()])


def valley(losses: np.ndarray) -> float:
    """The rate in the middle of the longest fall: of the longest falling subsequence, as fastai counts it."""
    lengths = np.ones(len(losses), dtype=int)
    for i in range(1, len(losses)):
        higher = lengths[:i][losses[:i] > losses[i]]
        lengths[i] = 1 + higher.max(initial=0)
    end, third = int(lengths.argmax()), (lengths.max()) / 3
    return float(TEST_RATES[end - lengths[end] + int(third) + int(third / 2)])


def found(at: Problem, adam: bool, steps: int = 60) -> acme.Found:
    closures = acme.closures(at.model, at.batches(), at.criterion)
    return acme.find_lr(at.model, closures, adam=adam, steps=steps)


def rates(name: str, adam: bool, seed: int) -> dict[str, tuple[float | None, int]]:
    """Of each finder: the rate, and the evaluations that it took."""
    losses, evaluations = range_test(problem(name, seed), adam)
    sixty, hundred = (found(problem(name, seed), adam, steps) for steps in (60, 100))
    said = {"steepest": (steepest(losses), evaluations), "valley": (valley(losses), evaluations)}
    said["acme"] = sixty.lr, sixty.evaluations
    if sixty.lr is not None:
        last, largest = sixty.trace[-1].step_size, max(report.step_size for report in sixty.trace)
        said["acme, gain 1 afterwards"] = sixty.lr / 2, sixty.evaluations
        said["acme, gain 4 afterwards"] = sixty.lr * 2, sixty.evaluations
        said["acme, largest step size"] = sixty.lr * largest / last, sixty.evaluations
    said["acme, 100 steps"] = hundred.lr, hundred.evaluations
    return said


def train(name: str, adam: bool, seed: int, lr: float) -> float:
    """The test error in % of a training with a cosine to 0; that of chance where it fails."""
    at = problem(name, seed)
    optimizer = optimizer_for(at.model, adam, lr)
    steps = at.epochs * sum(1 for _ in problem(name, seed).epoch())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(at.epochs):
        at.model.train()
        for batch in at.epoch():
            optimizer.zero_grad()
            at.loss(*batch).backward()
            optimizer.step()
            schedule.step()
    return at.error()


def rows_of(name: str, adam: bool) -> list[dict[str, object]]:
    about = {"task": name, "optimizer": "AdamW" if adam else "SGD"}
    trained = functools.cache(lambda seed, lr: train(name, adam, seed, lr))
    seeds = list(SEEDS)[:TRAINED]

    def mean(lr_of: Callable[[int], float | None]) -> float | None:
        """The error over the seeds that are trained; a seed without a rate has none."""
        if name == "cifar100" or any(lr_of(seed) is None for seed in seeds):
            return None
        return statistics.mean(trained(seed, lr_of(seed)) for seed in seeds)

    said = {seed: rates(name, adam, seed) for seed in SEEDS}
    rows: list[dict[str, object]] = []
    for finder in dict.fromkeys(key for each in said.values() for key in each):
        found = {seed: each.get(finder, (None, 0))[0] for seed, each in said.items()}
        known = [lr for lr in found.values() if lr is not None]
        rows.append(about | {
            "finder": finder,
            "lr": statistics.median(known) if known else None,
            "spread": max(known) / min(known) if known else None,
            "none": len(SEEDS) - len(known),
            "evaluations": said[SEEDS[0]].get(finder, (None, 0))[1],
            "error": mean(found.get),
        })  # fmt: skip
    if name != "cifar100":
        grid = [
            about | {"finder": "grid", "lr": float(lr), "error": mean(lambda _, lr=lr: lr)}
            for lr in RATES[adam]
        ]
        best = min(grid, key=lambda row: row["error"])
        rows += [best | {"finder": "best of the grid"}, *grid]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [*OPTIONS, "noisy"]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    chosen = parser.parse_args().tasks
    torch.set_num_threads(1)
    start, rows = time.perf_counter(), []
    for name in chosen:
        for adam in (False, True):
            more = rows_of(name, adam)
            show(f"{name}, {'AdamW' if adam else 'SGD'}", more)
            rows += more
            save("find_lr", rows, torch.device("cpu"), time.perf_counter() - start)


if __name__ == "__main__":
    main()
