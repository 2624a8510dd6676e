"""What the tables and the figures share: which runs of a study count, what they are called, how they look.

A study is a folder of `results/`, with the runs of the table in `table/` and those over the initial step
size in `lr/`. Everything here comes from the runs' CSVs and JSONs; torch is never imported.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from icassp25.config import RunConfig, UsageError
from icassp25.files import write_whole
from icassp25.runlog import Run, read_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, order=True)
class Optimizer:
    """One of the 16 optimizers."""

    adam: bool
    asam: bool
    nesterov: bool
    acme: bool

    @classmethod
    def of(cls, config: RunConfig) -> Optimizer:
        return cls(config.adam, config.asam, config.nesterov, config.acme)

    @property
    def base_name(self) -> str:
        names = ["Adam" if self.adam else "SGD"]
        return " + ".join(names + ["ASAM"] * self.asam + ["Nesterov"] * self.nesterov)

    @property
    def name(self) -> str:
        return self.base_name + " + ACME" * self.acme


BASES = tuple(
    (adam, asam, nesterov) for adam in (False, True) for asam in (False, True) for nesterov in (False, True)
)
PAIRS = tuple((Optimizer(*base, acme=False), Optimizer(*base, acme=True)) for base in BASES)
"""The 8 base optimizers, each without and with ACME."""

LR_PAIRS = tuple(pair for pair in PAIRS if not (pair[0].asam or pair[0].nesterov))
"""Those whose initial step size is varied: SGD and Adam."""


class Group:
    """Runs that differ in their seed only. Diverged runs are counted, never averaged."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        ordered = sorted(runs, key=lambda run: run.config.seed)
        self.seeds = [run.config.seed for run in ordered]
        self.finished = [run for run in ordered if not run.diverged]
        self.diverged = [run for run in ordered if run.diverged]

    @property
    def errors(self) -> dict[int, float]:
        """Last-epoch test error in %, by seed."""
        return {run.config.seed: 100 * float(run.frame["test_error"].iloc[-1]) for run in self.finished}

    def mean_error(self) -> float | None:
        return statistics.fmean(self.errors.values()) if self.errors else None

    def deviation(self) -> float | None:
        """Sample standard deviation of the errors, None below two seeds."""
        return statistics.stdev(self.errors.values()) if len(self.errors) > 1 else None

    def mean_last(self, column: str) -> float | None:
        """Mean over the seeds of a column's last value."""
        values = [float(run.frame[column].iloc[-1]) for run in self.finished]
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Study:
    """The runs of one folder that belong together, grouped over seeds, and what was left out and why."""

    groups: dict[tuple[Optimizer, float], Group]
    caption: str
    seeds: list[int]
    left_out: list[str]
    chance: float  #: test error, in %, of guessing

    def group(self, optimizer: Optimizer, lr: float | None = None) -> Group:
        """The runs of an optimizer (from an initial step size, where several were tried)."""
        for (other, start), group in self.groups.items():
            if other == optimizer and lr in (None, start):
                return group
        return Group()

    @property
    def lrs(self) -> list[float]:
        return sorted({lr for _, lr in self.groups})


def load_table(results: Path, study: str) -> Study:
    """The 16 optimizers of `results/<study>/table`, each from one initial step size.

    Raises:
        UsageError: no finished run there, or no telling which scale of runs is meant.
    """
    folder = results / study / "table"
    runs, left_out = load_folder(folder)
    kept: list[Run] = []
    for adam in (False, True):
        part = [run for run in runs if run.config.adam == adam]
        kept += _keep_most(part, lambda one, other: _differences(one, other, ("lr",)), folder, left_out)
    return _study(kept, left_out)


def load_equal(results: Path, study: str, table: Study) -> Study:
    """The base optimizers of `results/<study>/equal`, trained for as many evaluations as `table`'s with ACME.

    Raises:
        UsageError: no finished run there.
    """
    runs, left_out = load_folder(results / study / "equal", frozenset({"epochs"}))
    kept = []
    for run in runs:
        base = Optimizer.of(run.config)
        with_acme = table.group(replace(base, acme=True)).finished
        if base.acme or not with_acme:
            left_out.append(f"{run.path.name} is left out: nothing in the table to compare it with.")
            continue
        other = with_acme[0]
        different = [
            name for name in run.config.same_run(other.config) if name not in {"epochs", "acme", "seed"}
        ]
        wanted, there = (int(r.frame["evaluations"].iloc[-1]) for r in (other, run))
        epoch = run.config.steps_per_epoch * (1 + run.config.asam)
        if different:
            left_out.append(
                f"{run.path.name} is left out: it differs from the table's in {', '.join(different)}."
            )
        elif not run.diverged and not wanted <= there < wanted + epoch:
            left_out.append(
                f"{run.path.name} is left out: {there:,} evaluations, where ACME's run took {wanted:,}."
            )
        else:
            kept.append(run)
    return _study(kept, left_out)


def load_lr(results: Path, study: str) -> Study:
    """SGD and Adam with and without ACME over the initial step sizes of `results/<study>/lr`.

    Raises:
        UsageError: no finished run there, or no telling which scale of runs is meant.
    """
    runs, left_out = load_folder(results / study / "lr")
    wanted = {optimizer for pair in LR_PAIRS for optimizer in pair}
    kept = []
    for run in runs:
        if Optimizer.of(run.config) in wanted:
            kept.append(run)
        else:
            name = Optimizer.of(run.config).name
            left_out.append(f"{run.path.name} is left out: {name} has no place over initial step sizes.")
    if not kept:
        raise UsageError(f"{results / study / 'lr'} holds no run of SGD or Adam. {' '.join(left_out)}")
    return _study(kept, left_out)


# What may differ between the runs of a study; in all else they must agree to be averaged and compared.
VARIED = frozenset({"seed", "lr", "acme", "adam", "asam", "nesterov", "device"})


def load_folder(folder: Path, varied: frozenset[str] = frozenset()) -> tuple[list[Run], list[str]]:
    """A folder's runs that agree in all but VARIED and `varied`, and why the others are left out.

    Raises:
        UsageError: no finished run there, or no telling which scale of runs is meant.
    """
    runs, left_out = read_study(folder)
    if not runs:
        reasons = " " + " ".join(left_out) if left_out else ""
        raise UsageError(
            f"{folder} holds no finished run; scripts/sweep_{folder.name}.sh makes them.{reasons}"
        )
    scale = [name for name in runs[0].config.to_dict() if name not in VARIED | varied]
    runs = _keep_most(runs, lambda one, other: _differences(one, other, scale), folder, left_out)
    return runs, left_out


def device_of(run: Run) -> str:
    """The device in words; of one thread, which runs used to call "1 threads"."""
    return str(run.sidecar["device"]).replace(", 1 threads", ", 1 thread")


_TEXT = "text_sha256"  # in the JSON of runs that learn a text


def _differences(one: Run, other: Run, names: Sequence[str]) -> list[str]:
    """Of the options `names`, those in which two runs differ; and `text_sha256`, where they learned another text."""
    different = [name for name in one.config.same_run(other.config) if name in names]
    return different + [_TEXT] * (_value(one, _TEXT) != _value(other, _TEXT))


def _value(run: Run, name: str) -> object:
    return run.sidecar.get(name) if name == _TEXT else getattr(run.config, name)


def _keep_most(
    runs: list[Run], differences: Callable[[Run, Run], list[str]], folder: Path, left_out: list[str]
) -> list[Run]:
    """The largest set of runs that do not differ; the others are named in `left_out`."""
    kinds: list[list[Run]] = []
    for run in runs:
        alike = next((kind for kind in kinds if not differences(kind[0], run)), None)
        if alike is None:
            kinds.append([run])
        else:
            alike.append(run)
    if not kinds:
        return []
    most, *others = sorted(kinds, key=len, reverse=True)
    if others and len(others[0]) == len(most):
        names = ", ".join(differences(most[0], others[0][0]))
        raise UsageError(
            f"{folder} mixes runs that differ in {names}, as many of one kind as of the other "
            f"({most[0].path.name}, {others[0][0].path.name}): move one kind to a study of its own."
        )
    for run in (run for kind in others for run in kind):
        reasons = ", ".join(
            f"{name} is {_value(run, name)}, most have {_value(most[0], name)}"
            for name in differences(most[0], run)
        )
        left_out.append(f"{run.path.name} is left out: {reasons}.")
    return most


def _study(runs: list[Run], left_out: list[str]) -> Study:
    groups: dict[tuple[Optimizer, float], list[Run]] = {}
    kept = []
    for run in runs:
        group = groups.setdefault((Optimizer.of(run.config), run.config.lr), [])
        twin = next((other for other in group if other.config.seed == run.config.seed), None)
        if twin is None:
            group.append(run)
            kept.append(run)
        else:
            left_out.append(f"{run.path.name} is left out: the same run as {twin.path.name}.")
    seeds = sorted({run.config.seed for run in kept})
    grouped = {key: Group(groups[key]) for key in sorted(groups)}
    chance = chance_of(kept[0]) if kept else math.nan
    return Study(grouped, caption_of(kept) if kept else "", seeds, sorted(left_out), chance)


def chance_of(run: Run) -> float:
    """Test error, in %, of guessing the run's test set: as its JSON says, else among classes that are as frequent."""
    return 100 * float(run.sidecar.get("chance", run.config.about.chance))


def _epochs(runs: list[Run]) -> str:
    epochs = sorted({run.config.epochs for run in runs})
    return " or ".join(map(str, epochs)) + " epoch" + "s" * (epochs[-1] > 1)


def _limits(runs: list[Run]) -> list[str]:
    shares = sorted({run.config.limit_train_batches for run in runs})
    return [] if shares == [1] else [" or ".join(f"{share:g}" for share in shares) + " of an epoch's batches"]


def caption_of(runs: list[Run]) -> str:
    """The scale of the runs in words: model, data, epochs, batch, seeds, device, precision."""
    config = runs[0].config
    unit = config.about.unit
    if config.model == "WRN":
        model = f"WRN-{config.depth}-{config.width_alpha}"
    elif config.model == "transformer":
        model = f"Transformer, {config.depth} layers, width {config.width_alpha}"
    elif config.model == "MLP":
        model = f"MLP, hidden layers {config.depth} × {config.width_alpha}"
    else:
        bottleneck = ", bottleneck" if config.bottleneck else ""
        model = f"PyramidNet-{config.depth}, α = {config.width_alpha}{bottleneck}"
    seeds = sorted({run.config.seed for run in runs})
    return ", ".join(
        [
            f"{model} ({runs[0].sidecar['parameters']:,} parameters)",
            config.about.title,
            f"{config.available_images:,} training {unit}",
            *([f"{config.validation:,} validation {unit.split()[0]}"] if config.validation else []),
            *([f"dropout {config.dropout:g}"] if config.dropout else []),
            _epochs(runs),
            *_limits(runs),
            f"batch size {config.batch_size}",
            ("seeds " if len(seeds) > 1 else "seed ") + ", ".join(map(str, seeds)),
            " and ".join(sorted({device_of(run) for run in runs})),
            config.precision + ", compiled" * config.compile,
        ]
    )


# ── Command line ──────────────────────────────────────────────────────────────────────────────────────


def command_line(description: str, work: Callable[[Path, str, Path], None]) -> int:
    """Run `work(results, study, out)` from the options; a `UsageError` is one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--study", default="quick", help="folder of --results; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="writes to OUT/STUDY; %(default)s")
    options = parser.parse_args()
    try:
        if not (options.results / options.study).is_dir():
            raise UsageError(
                f"{options.results / options.study}: no such study; PRESET={options.study} "
                "scripts/sweep_table.sh and scripts/sweep_lr.sh would make it."
            )
        work(options.results, options.study, options.out / options.study)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


# ── Look of the figures ───────────────────────────────────────────────────────────────────────────────

# Okabe and Ito's palette, which colour-blind readers tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
BROWN = "#7A4A1E"  # beside the seven of Okabe and Ito, darker than all but black
GREY = "#999999"

FULL_WIDTH = 7.0
"""Inches: the text width of a two-column paper."""

PAIR_STYLE = (
    {"color": VERMILLION, "linestyle": "--", "marker": "s"},
    {"color": BLUE, "linestyle": "-", "marker": "o"},
)
"""Line styles without and with ACME."""

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "figure.titlesize": 7,
    "figure.labelsize": 7.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


def style() -> None:
    """Set matplotlib up: no window, fonts and sizes for print, nothing taken from the user's settings."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_STYLE)


def title(figure: Figure, text: str) -> None:
    """Say above a figure what it is drawn from, in lines of about the same length."""
    lines = math.ceil(len(text) / (figure.get_figwidth() * 19))
    figure.suptitle("\n".join(textwrap.wrap(text, len(text) // lines + 10)), color="#444444")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name.pdf` and `name.png`, the same bytes for the same figure."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    folder.mkdir(parents=True, exist_ok=True)
    ConstrainedLayoutEngine().execute(figure)  # once, for both formats
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, metadata=metadata)
        write_whole(folder / f"{name}.{suffix}", content.getvalue())
