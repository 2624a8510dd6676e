"""What a table or figure says of its runs: the caption, and the notes below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from icassp25.config import RunConfig
from icassp25.peers import PEERS
from icassp25.runlog import Run
from study.runs import OPTIONS, SCALE, Group, by_key, device_of, runs_of, varied
from study.titles import title

TERMS = {
    "differences": "Differences: ACME's error minus the other's in percentage points, paired by seed, with their 95 % "
    "confidence interval by Student's t.",
    "cost": "Evaluations: of the gradient, in one run. Seconds: of its training.",
    "lr": "lr: the learning rate, with ACME the initial step size.",
    "tuned": "Tuned: from the scale with the lowest last-epoch validation error with the first seed, used with all, "
    "after a run from each.",
}
"""What words in the head of a table mean."""


def caption(what: str, runs: list[Run], *terms: str) -> str:
    """What a table shows of the runs, what its words mean, and the scale of the runs."""
    errors = "mean ± standard deviation over seeds" if len(seeds_of(runs)) > 1 else "one seed"
    said = [f"{what}.", f"Test error in % after the last epoch ({errors}).", *map(TERMS.get, terms)]
    return " ".join([*said, f"{scale_of(runs)}."])


def seeds_of(runs: Iterable[Run]) -> set[int]:
    return {run.config.seed for run in runs}


def text_of(value: object) -> str:
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def given(config: RunConfig, names: AbstractSet[str] = OPTIONS) -> list[str]:
    """Those of the options `names` that are not the defaults, in their order: "acme", "gain 2"."""
    default = RunConfig(dataset=config.dataset, model=config.model)
    values = {name: getattr(config, name) for name in OPTIONS if name in names}
    return [
        name if value is True else f"{name} {text_of(value)}"
        for name, value in values.items()
        if value != getattr(default, name)
    ]


def scale_of(runs: list[Run]) -> str:
    """The scale of the runs in words: model, data, epochs, batch, seeds, device, precision; where they differ, each."""
    config = runs[0].config
    unit = config.about.unit

    def each(values: Iterable[object], join: str = " or ") -> str:
        return join.join(map(text_of, sorted(set(values))))

    model = {
        "WRN": f"WRN-{config.depth}-{config.width_alpha}",
        "transformer": f"Transformer, {config.depth} layers, width {config.width_alpha}",
        "MLP": f"MLP, hidden layers {config.depth} × {config.width_alpha}",
        "Pyramid": f"PyramidNet-{config.depth}, α = {config.width_alpha}"
        + ", bottleneck" * config.bottleneck,
    }[config.model]
    epochs, seeds = each(run.config.epochs for run in runs), each(seeds_of(runs), ", ")
    limits = each(run.config.limit_train_batches for run in runs)
    parts = [
        f"{model} ({runs[0].sidecar['parameters']:,} parameters)",
        config.about.title,
        f"{config.available_images:,} training {unit}",
        f"{config.validation:,} validation {unit.split()[0]}" * (config.validation > 0),
        f"dropout {config.dropout:g}" * (config.dropout > 0),
        f"{epochs} epoch" + "s" * (epochs != "1"),
        f"{limits} of an epoch's batches" * (limits != "1"),
        f"batch size {config.batch_size}",
        f"seed{'s' * (',' in seeds)} {seeds}",
        each(map(device_of, runs), " and "),
        config.precision + ", compiled" * config.compile,
    ]
    return ", ".join(filter(None, parts))


def how(groups: list[Group], defaults: Mapping[str, float] | None = None) -> list[str]:
    """A line a key: its default, the options that its runs have in common, and how the authors of a peer use it."""
    said = SCALE | {"lr", "seed", "optimizer"} | ({"epochs", "limit_train_batches"} - varied(groups))
    lines = []
    for key, some in by_key(groups).items():
        config = some[0].config
        peer = PEERS.get(config.optimizer)
        scale = peer.scale if peer else "initial step size" if config.acme else "learning rate"
        words = [f"×1 is {defaults[key]:g}, the {scale}"] if defaults else []
        words.append(", ".join(given(config, OPTIONS - said - varied(some))))
        words += [peer.how, f"weight decay {peer.decay}"] if peer else []
        lines.append(f"{title(key)}: {'; '.join(filter(None, words)) or 'all options by default'}.")
    return lines


def missing(groups: list[Group], wanted: Mapping[str, int]) -> list[str]:
    """Of the keys `wanted`, which lack runs from so many starts each, for all seeds that there are."""
    seeds, found = len(seeds_of(runs_of(groups))), by_key(groups)
    lacking = {key: starts * seeds - len(runs_of(found.get(key, []))) for key, starts in wanted.items()}
    return [
        f"Missing: {title(key)}, {count} of {wanted[key] * seeds} runs."
        for key, count in lacking.items()
        if count > 0
    ]


def notes(groups: list[Group], left_out: list[str], timed: bool = False) -> list[str]:
    """Which runs diverged or were left out; and, unless they are `timed` elsewhere, whether seconds compare."""
    lines = []
    for key, some in by_key(groups).items():
        lost = Counter(group.config.lr for group in some for _ in group.diverged)
        if lost:
            starts = ", ".join(f"{lr:g} ({count})" for lr, count in lost.items())
            lines.append(f"Diverged: {title(key)} from {starts}.")
    if any(group.diverged and group.finished for group in groups):
        lines.append("* over the seeds that did not diverge.")
    if not timed and len(set(map(device_of, runs_of(groups)))) > 1:
        lines.append("The runs come from several devices: their seconds do not compare.")
    return lines + sorted(left_out)


def ahead(words: str, differences: Mapping[str, float | None]) -> str:
    """In how many cases ACME's difference to the other is below zero, and in which."""
    found = {name: difference for name, difference in differences.items() if difference is not None}
    lower = [name for name, difference in found.items() if difference < 0]
    return f"{words} {len(lower)} of {len(found)}" + f": {', '.join(lower)}" * bool(lower) + "."
