"""What a table or figure says of its runs: the caption, and the notes below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from icassp25.config import RunConfig
from icassp25.peers import PEERS
from icassp25.runlog import Run
from study.runs import OPTIONS, SCALE, Group, by_key, device_of, runs_of
from study.titles import rank, title


def spread_words(runs: Iterable[Run]) -> str:
    several = len({run.config.seed for run in runs}) > 1
    return "mean ± standard deviation over seeds" if several else "one seed"


def given(config: RunConfig, names: AbstractSet[str] = OPTIONS) -> list[str]:
    """Those of the options `names` that are not the defaults, in their order: "acme", "gain 2"."""
    default = RunConfig(dataset=config.dataset, model=config.model)
    found = []
    for name in OPTIONS:
        value = getattr(config, name)
        if name in names and value != getattr(default, name):
            found.append(name if value is True else f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")  # fmt: skip
    return found


def caption(runs: list[Run]) -> str:
    """The scale of the runs in words: model, data, epochs, batch, seeds, device, precision; where they differ, each."""
    config = runs[0].config
    unit = config.about.unit

    def each(values: Iterable[object], join: str = " or ") -> str:
        return join.join(
            f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(set(values))
        )

    if config.model == "WRN":
        model = f"WRN-{config.depth}-{config.width_alpha}"
    elif config.model == "transformer":
        model = f"Transformer, {config.depth} layers, width {config.width_alpha}"
    elif config.model == "MLP":
        model = f"MLP, hidden layers {config.depth} × {config.width_alpha}"
    else:
        model = f"PyramidNet-{config.depth}, α = {config.width_alpha}" + ", bottleneck" * config.bottleneck
    epochs, seeds = each(run.config.epochs for run in runs), each((run.config.seed for run in runs), ", ")
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
    """A line for each key: its default, the options that its runs have in common, and how the authors of a peer use it."""
    said = SCALE | {"lr", "seed", "optimizer"}
    said |= {name for name in ("epochs", "limit_train_batches") if len({getattr(group.config, name) for group in groups}) == 1}  # fmt: skip
    lines = []
    for key, some in sorted(by_key(groups).items(), key=lambda item: rank(item[0])):
        config = some[0].config
        peer = PEERS.get(config.optimizer)
        common = {
            name for name in OPTIONS - said if len({getattr(group.config, name) for group in some}) == 1
        }
        scale = peer.scale if peer else "initial step size" if config.acme else "learning rate"
        words = [f"×1 is {defaults[key]:g}, the {scale}"] if defaults else []
        words += [", ".join(given(config, common))]
        if peer is not None:
            words += [peer.how, f"weight decay {peer.decay} ({peer.source})"]
        lines.append(
            f"{title(key)}: {'; '.join(filter(None, words)) or 'all options as they are by default'}."
        )
    return lines


def notes(
    groups: list[Group], left_out: list[str], wanted: Mapping[str, int], timed: bool = False
) -> list[str]:
    """What the reader has to know: the runs missing of the keys `wanted`, from so many starts each, for all seeds that
    there are; which diverged or were left out; and, unless they are `timed` elsewhere, whether seconds compare."""
    runs, found = runs_of(groups), by_key(groups)
    seeds = {run.config.seed for run in runs}
    lines = []
    for key, starts in wanted.items():
        whole, there = starts * len(seeds), len(runs_of(found.get(key, [])))
        if there < whole:
            lines.append(f"Missing: {title(key)}, {whole - there} of {whole} runs.")
    for key, some in sorted(found.items(), key=lambda item: rank(item[0])):
        lost = Counter(group.config.lr for group in some for _ in group.diverged)
        if lost:
            starts = ", ".join(f"{lr:g} ({count})" for lr, count in lost.items())
            lines.append(f"Diverged: {title(key)} from {starts}.")
    if any(group.diverged and group.finished for group in groups):
        lines.append("* over the seeds that did not diverge.")
    if not timed and len({device_of(run) for run in runs}) > 1:
        lines.append("The runs come from several devices: their seconds do not compare.")
    return lines + sorted(left_out)
