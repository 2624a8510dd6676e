"""Which runs of a folder count, and which belong together: those with the same options but for the seed.

What a run is comes from its JSON; its name gives it a key, which is all before the first dot: `sgd-acme` in
`sgd-acme.lr0.1.seed42.csv`. Options have no values here: a new option needs no line in this package.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from icassp25.config import WHERE_AND_HOW, RunConfig, UsageError
from icassp25.runlog import Run, read_study
from study.titles import rank

DEFAULTS = RunConfig().to_dict()
OPTIONS = {name: value for name, value in DEFAULTS.items() if name not in WHERE_AND_HOW | {"device"}}.keys()
"""What makes a run, in order."""
SCALE = frozenset(
    {"dataset", "train_images", "validation", "batch_size", "model", "depth", "width_alpha", "bottleneck"}
    | {"dropout", "label_smoothing", "momentum", "weight_decay", "precision", "compile"}
)
"""What runs of one folder must agree in, whatever the folder is about."""
FLAGS = frozenset({"adam", "asam", "nesterov", "acme"})
TEXT = "text_sha256"  # in the JSON of runs that learn a text


def key_of(run: Run) -> str:
    return run.path.name.split(".")[0]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, in the order of their seeds. Diverged runs are counted, never averaged."""

    runs: tuple[Run, ...] = ()

    @property
    def key(self) -> str:
        return key_of(self.runs[0])

    @property
    def config(self) -> RunConfig:
        """Of the first of them."""
        return self.runs[0].config

    @cached_property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]

    @cached_property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if not run.diverged]

    @cached_property
    def diverged(self) -> list[Run]:
        return [run for run in self.runs if run.diverged]

    @cached_property
    def errors(self) -> dict[int, float]:
        """Last-epoch test error in %, by seed."""
        return {run.config.seed: 100 * last(run, "test_error") for run in self.finished}

    @property
    def error(self) -> float | None:
        return statistics.fmean(self.errors.values()) if self.errors else None

    def mean(self, column: str) -> float | None:
        """Of a column's last values."""
        return mean(last(run, column) for run in self.finished)


def last(run: Run, column: str) -> float:
    return float(run.frame[column].iloc[-1])


def mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.fmean(values) if values else None


def load(
    folder: Path, free: AbstractSet[str] = OPTIONS - SCALE, of_key: AbstractSet[str] = OPTIONS
) -> tuple[list[Group], list[str]]:
    """A folder's groups, and why its other runs are left out.

    Runs must agree in all options but `free` and the seed; those of one key in all but `of_key` as well. Where they do
    not, the most count; a `UsageError` where there are as many of one kind as of another, or no finished run.
    """
    runs, left_out = read_study(folder)
    if not runs:
        sweep = f"scripts/sweep_{folder.name}.sh"
        raise UsageError(" ".join([f"{folder} holds no finished run; {sweep} makes them.", *left_out]))
    keys: dict[str, list[Run]] = {}
    for run in _most(runs, OPTIONS - free, folder, left_out):
        keys.setdefault(key_of(run), []).append(run)
    groups: dict[object, dict[int, Run]] = {}
    for key, some in keys.items():
        for run in _most(some, OPTIONS - of_key, folder, left_out):
            group = groups.setdefault((key, identity(run.config)), {})
            twin = group.setdefault(run.config.seed, run)
            if twin is not run:
                left_out.append(f"{run.path.name} is left out: the same run as {twin.path.name}.")
    return [Group(tuple(group[seed] for seed in sorted(group))) for group in groups.values()], left_out


def leave_out(left_out: list[str], groups: Iterable[Group], reason: str) -> None:
    left_out += [f"{run.path.name} is left out: {reason}." for run in runs_of(groups)]


def identity(config: RunConfig, but: AbstractSet[str] = frozenset()) -> tuple[object, ...]:
    """What makes runs the same: all options but the seed and `but`."""
    return tuple(getattr(config, name) for name in OPTIONS if name != "seed" and name not in but)


def varied(groups: Iterable[Group]) -> set[str]:
    """The options in which groups differ."""
    configs = [group.config for group in groups]
    return {name for name in OPTIONS - {"seed"} if len({getattr(config, name) for config in configs}) > 1}


def by_key(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """In the order of the tables, and of the initial step sizes."""
    found: dict[str, list[Group]] = {}
    for group in sorted(groups, key=lambda group: (rank(group.key), group.config.lr)):
        found.setdefault(group.key, []).append(group)
    return found


def runs_of(groups: Iterable[Group]) -> list[Run]:
    return [run for group in groups for run in group.runs]


def device_of(run: Run) -> str:
    """The device in words; of one thread, which runs used to call "1 threads"."""
    return str(run.sidecar["device"]).replace(", 1 threads", ", 1 thread")


def chance_of(run: Run) -> float:
    """Test error, in %, of guessing the run's test set: as its JSON says, else among classes that are as frequent."""
    return 100 * float(run.sidecar.get("chance", run.config.about.chance))


def _most(runs: list[Run], fixed: AbstractSet[str], folder: Path, left_out: list[str]) -> list[Run]:
    """The largest set of runs that agree in the options `fixed`, and in the text; others are named in `left_out`."""

    def kind_of(run: Run) -> dict[str, object]:
        options = {name: getattr(run.config, name) for name in OPTIONS if name in fixed - {"seed"}}
        return options | {TEXT: run.sidecar.get(TEXT)}

    kinds: dict[object, list[Run]] = {}
    for run in runs:
        kinds.setdefault(tuple(kind_of(run).values()), []).append(run)
    most, *others = sorted(kinds.values(), key=len, reverse=True)
    usual = kind_of(most[0])
    for kind in others:
        different = {name: value for name, value in kind_of(kind[0]).items() if value != usual[name]}
        if len(kind) == len(most):
            raise UsageError(
                f"{folder} mixes runs that differ in {', '.join(different)}, as many of one kind as of the other "
                f"({most[0].path.name}, {kind[0].path.name}): move one kind to a study of its own."
            )
        reasons = [f"{name} is {value}, most have {usual[name]}" for name, value in different.items()]
        leave_out(left_out, [Group(tuple(kind))], ", ".join(reasons))
    return most
