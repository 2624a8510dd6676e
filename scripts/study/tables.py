"""The tables of a folder of runs: of pairs without and with ACME, of starts, of averages, of options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from icassp25.config import UsageError
from icassp25.runlog import Run
from study.runs import DEFAULTS, FLAGS, OPTIONS, Group, by_key, identity, load, runs_of
from study.stats import SIGNIFICANT, Numbers, compare, numbers_of
from study.titles import PAIRS, rank, title
from study.words import caption, given, how, notes, spread_words
from study.write import NOTHING, Table, frame_of

Cells = Mapping[tuple[str, str], Callable[[Numbers], str]]
"""By column (what stands above it, or nothing, and its name), how a row's numbers become its cell."""
Groups = dict[str, Group]

ACME = ("", "-acme")  # after a key: without, with
SIDES = {"without_": "without", "acme_": "with"}
WAYS = frozenset({"no_annealing", "anneal_over", "average_weights"})
DIFFERENCE = (
    "ACME's difference in percentage points, paired by seed, with its 95 % confidence interval by Student's t"
)


def cells(rows: list[Numbers], columns: Cells) -> pd.DataFrame:
    texts = {column: [text(row) for row in rows] for column, text in columns.items()}
    return pd.DataFrame(texts, columns=pd.MultiIndex.from_tuples(texts))


def table(name: str, heading: str, words: str, rows: list[Numbers], columns: Cells, **more: object) -> Table:
    return Table(name, heading, words, cells(rows, columns), frame_of(rows), **more)


# ── Cells ─────────────────────────────────────────────────────────────────────────────────────────────


def number(name: str, text: str) -> Callable[[Numbers], str]:
    """A row's number in a format."""
    return lambda row: NOTHING if row[name] is None else format(row[name], text).replace("-", "−")


def start(row: Numbers) -> str:
    return f"{row['lr']:g}"


def seconds(name: str) -> Callable[[Numbers], str]:
    return lambda row: number(name, ",.1f" if (row[name] or 0) < 100 else ",.0f")(row)


def error(side: str = "", digits: int = 2) -> Callable[[Numbers], str]:
    """A mean error ± its deviation, with a star where a run of several diverged."""

    def text(row: Numbers) -> str:
        mean, deviation, lost = (row.get(side + name) for name in ("error_mean", "error_std", "diverged"))
        if mean is None:
            return "diverged" if lost else NOTHING
        words = f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}"
        return words + "*" * bool(lost)

    return text


def difference(side: str = "", above: str = "ACME's difference") -> Cells:
    def interval(row: Numbers) -> str:
        ends = [number(side + name, "+.2f")(row) for name in ("interval_low", "interval_high")]
        pairs = row[f"{side}pairs"]
        if ends[0] != NOTHING:
            return " to ".join(ends)
        return NOTHING if not pairs else "one seed" if pairs == 1 else "no spread"

    return {(above, "points"): number(f"{side}difference", "+.2f"), (above, "95 % interval"): interval}


def prefixed(side: str, numbers: Numbers) -> Numbers:
    return {side + name: value for name, value in numbers.items()}


def paired(without: Group, acme: Group, side: str = "") -> Numbers:
    """Both groups' numbers, and how they differ."""
    numbers = {"without_": numbers_of(without), "acme_": numbers_of(acme), "": compare(without, acme)}
    return {side + name: value for part in numbers for name, value in prefixed(part, numbers[part]).items()}


# ── Pairs ─────────────────────────────────────────────────────────────────────────────────────────────


def load_pairs(folder: Path, free: frozenset[str] = frozenset(), keys: tuple[str, ...] = PAIRS):
    """The groups of `keys`, without and with ACME, and why others are left out; `free` may differ within a key."""
    groups, left_out = load(folder, FLAGS | {"lr"} | free, free)
    wanted = {key + acme for key in keys for acme in ACME}
    left_out += [f"{run.path.name} is left out: {group.key} has no place here." for group in groups if group.key not in wanted for run in group.runs]  # fmt: skip
    groups = [group for group in groups if group.key in wanted]
    if not groups:
        raise UsageError(" ".join([f"{folder} holds no run of {' or '.join(map(title, keys))}.", *left_out]))
    return groups, left_out


def pairs_table(name: str, heading: str, words: str, without: Groups, acme: Groups, **more: object) -> Table:
    """Each of PAIRS without ACME beside the same with it."""
    nothing = Group()
    rows = [
        {"optimizer": title(key)} | paired(without.get(key, nothing), acme.get(f"{key}-acme", nothing))
        for key in PAIRS
    ]
    means = {row["optimizer"]: row["difference"] for row in rows if row["difference"] is not None}
    better = [optimizer for optimizer, mean in means.items() if mean < 0]
    summary = [f"ACME has the lower error in {len(better)} of {len(means)} pairs" + f": {', '.join(better)}" * bool(better) + "."]  # fmt: skip
    tested = [row["p_value"] for row in rows if row["p_value"] is not None]
    certain = sum(p < SIGNIFICANT for p in tested)
    summary.append(
        f"{certain} of {len(tested)} paired tests give p < {SIGNIFICANT} (not corrected)."
        if tested
        else "One seed: no test tells these differences from chance."
    )
    columns = {
        ("", "Optimizer"): lambda row: row["optimizer"],
        **{("Error, %", words): error(side) for side, words in SIDES.items()},
        **difference(),
        ("", "Seeds"): number("pairs", "d"),
        **{("Evaluations", words): number(f"{side}evaluations", ",.0f") for side, words in SIDES.items()},
        **{("Seconds", words): seconds(f"{side}seconds") for side, words in SIDES.items()},
    }
    return table(name, heading, words, rows, columns, summary=summary, **more)


def main_table(results: Path, study: str) -> Table:
    """The 8 base optimizers, each without and with ACME, from one initial step size each."""
    groups, left_out = load_pairs(results / study / "table")
    found, runs = {group.key: group for group in groups}, runs_of(groups)
    starts = " and ".join(f"{lr:g} ({'Adam' if adam else 'SGD'})" for adam, lr in sorted({(run.config.adam, run.config.lr) for run in runs}))  # fmt: skip
    one = pairs_table(
        "table",
        "The 16 optimizers",
        f"Test error after the last epoch without and with ACME ({spread_words(runs)}); {DIFFERENCE}; gradient "
        f"evaluations and seconds of training. {caption(runs)}; initial step size {starts}.",
        found,
        found,
        notes=notes(groups, left_out, {key + acme: 1 for key in PAIRS for acme in ACME}),
    )
    errors = sorted((group.error, title(group.key)) for group in groups if group.error is not None)
    one.summary.extend(f"Lowest error: {name}, {error:.2f} %." for error, name in errors[:1])
    return one


def equal_table(results: Path, study: str) -> Table:
    """The 8 base optimizers, each trained for as many gradient evaluations as the table's with ACME."""
    table, _ = load_pairs(results / study / "table")
    acme = {group.key: group for group in table if group.key.endswith("-acme")}
    found, left_out = load_pairs(results / study / "equal", frozenset({"epochs"}))
    groups = []
    for group in found:
        other = acme.get(f"{group.key}-acme")
        reason = "nothing in the table to compare it with"
        if other is not None and other.finished:
            names = OPTIONS - {"acme", "epochs", "seed"}
            different = [
                name for name in sorted(names) if getattr(group.config, name) != getattr(other.config, name)
            ]
            wanted, there = (one.mean("evaluations") or 0 for one in (other, group))
            epoch = group.config.steps_per_epoch * (1 + group.config.asam)
            if different:
                reason = f"it differs from the table's in {', '.join(different)}"
            elif group.finished and not wanted <= there < wanted + epoch:
                reason = f"{there:,.0f} evaluations, where ACME's run took {wanted:,.0f}"
            else:
                groups.append(group)
                continue
        left_out += [f"{run.path.name} is left out: {reason}." for run in group.runs]
    if not groups:
        raise UsageError(" ".join([f"{results / study / 'equal'} holds no run to compare.", *left_out]))
    return pairs_table(
        "equal",
        "Equal evaluations",
        f"At equal gradient evaluations: test error after the last epoch ({spread_words(runs_of(groups))}) of each "
        "optimizer trained without ACME for as many evaluations as with it, rounded up to whole epochs; "
        f"{DIFFERENCE}; gradient evaluations and seconds of training. Without ACME: {caption(runs_of(groups))}. With "
        f"ACME: {caption(runs_of(acme.values()))}.",
        {group.key: group for group in groups},
        acme,
        notes=notes(groups, left_out, dict.fromkeys(PAIRS, 1)),
    )


# ── Starts ────────────────────────────────────────────────────────────────────────────────────────────

STARTS = ("sgd", "adam")
"""Those whose initial step size is varied, without and with ACME."""


def load_starts(results: Path, study: str) -> tuple[list[Group], list[str]]:
    return load_pairs(results / study / "lr", frozenset({"lr"}), STARTS)


def starts_table(results: Path, study: str) -> Table:
    """SGD and Adam without and with ACME, over initial step sizes."""
    groups, left_out = load_starts(results, study)
    runs, found = runs_of(groups), {(group.key, group.config.lr): group for group in groups}
    lrs = sorted({lr for _, lr in found})
    rows: list[Numbers] = [{"lr": lr} for lr in lrs]
    columns: dict[tuple[str, str], Callable[[Numbers], str]] = {("", "Start"): start}
    footer = {("", "Start"): ["Best", "Max − min", "Evaluations", "Seconds"]}
    summary, dagger = [], False
    for key in STARTS:
        base = title(key)
        for row, lr in zip(rows, lrs, strict=True):
            row |= paired(*(found.get((key + acme, lr), Group()) for acme in ACME), side=f"{key}_")
        columns |= {(base, words): error(f"{key}_{side}") for side, words in SIDES.items()}
        columns |= difference(f"{key}_", base) | {(base, "seeds"): number(f"{key}_pairs", "d")}
        for acme, words in zip(ACME, SIDES.values(), strict=True):
            some = by_key(groups).get(key + acme, [])
            errors = {group.config.lr: group.error for group in some if group.error is not None}
            whole = Group(tuple(runs_of(some)))
            lost = len(errors) < len(lrs)
            dagger |= lost
            best, worst = min(errors.values(), default=None), max(errors.values(), default=None)
            numbers = {"best": best, "range": worst - best if len(errors) > 1 else None}
            numbers |= {"evaluations": whole.mean("evaluations"), "seconds": whole.mean("seconds")}
            footer[base, words] = [
                number("best", ".2f")(numbers),
                number("range", ".2f")(numbers) + "†" * lost,
                number("evaluations", ",.0f")(numbers),
                seconds("seconds")(numbers),
            ]
            if errors:
                summary.append(
                    f"{title(key + acme)}: {best:.2f} to {worst:.2f} % over {len(errors)} of {len(lrs)} initial step "
                    f"sizes, best from {min(errors, key=errors.get):g}."
                )
    frame = cells(rows, columns)
    below = pd.DataFrame({column: footer.get(column, "") for column in frame.columns})
    return Table(
        "robustness",
        "Initial step sizes",
        f"Test error in % after the last epoch without and with ACME ({spread_words(runs)}) from each initial step size; "
        f"{DIFFERENCE}; gradient evaluations and seconds of training of a run. The best of a column is chosen on the "
        f"test set: it flatters the optimizers that need the choice. {caption(runs)}.",
        pd.concat([frame, below], ignore_index=True),
        frame_of(rows),
        ["† over the starts from which a run finished."] * dagger
        + notes(groups, left_out, {key + acme: len(lrs) for key in STARTS for acme in ACME}),
        summary,
        len(below),
    )


# ── Options ───────────────────────────────────────────────────────────────────────────────────────────


def varied(groups: list[Group]) -> set[str]:
    """Options in which runs of one key differ."""
    return {
        name
        for some in by_key(groups).values()
        for name in OPTIONS - {"seed"}
        if len({getattr(group.config, name) for group in some}) > 1
    }


def option(name: str) -> Callable[[Numbers], str]:
    """A row's option; nothing where only ACME has it."""

    def text(row: Numbers) -> str:
        value = row[name]
        if not row["acme"] and value == DEFAULTS[name]:
            return NOTHING
        return "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    return text


def options_table(results: Path, study: str, folder: str) -> Table:
    """A row for each set of options in a folder, a column for each option in which runs of one key differ."""
    groups, left_out = load(results / study / folder)
    different = varied(groups) | {"lr"}
    flags = [name for name in OPTIONS if name in different and isinstance(DEFAULTS[name], bool)]
    numeric = [name for name in OPTIONS if name in different and name not in flags]
    groups.sort(
        key=lambda group: (rank(group.key), *((getattr(group.config, name) or 0) for name in flags + numeric))
    )
    rows = [
        {
            "optimizer": ", ".join([title(group.key), *given(group.config, set(flags))]),
            "acme": group.config.acme,
        }
        | {name: getattr(group.config, name) for name in numeric}
        | {"step_size": group.mean("step_size")}
        | numbers_of(group)
        for group in groups
    ]
    columns = {
        ("", "Optimizer"): lambda row: row["optimizer"],
        **{("", name): option(name) for name in numeric},
        ("", "Evaluations"): number("evaluations", ",.0f"),
        ("", "Last step size"): number("step_size", ".3g"),
        ("", "Test error, %"): error(),
        ("", "Seeds"): lambda row: str(row["seeds"] + row["diverged"]),
    }
    return table(
        folder,
        f"Runs of {folder}/",
        "Gradient evaluations of a run, the step size at its end and the test error after the last epoch "
        f"({spread_words(runs_of(groups))}). lr is the learning rate, with ACME the initial step size. "
        f"{caption(runs_of(groups))}.",
        rows,
        columns,
        notes=how(groups) + notes(groups, left_out, {}),
    )


def averages_table(results: Path, study: str) -> Table:
    """Annealed steps beside averaged weights: a row for each optimizer and start of `averages`, a column for each way,
    of these runs and of those of `peers` that are the same but for the way."""
    own, left_out = load(results / study / "averages")
    beside = load(results / study / "peers")[0] if (results / study / "peers").is_dir() else []
    keys = {identity(group.config, WAYS): group.key for group in own}
    runs: dict[tuple[object, str], list[Run]] = {}
    ways = {}
    for group in own + beside:
        row, way = identity(group.config, WAYS), ", ".join(given(group.config, WAYS)) or "as usual"
        if row in keys:
            runs.setdefault((row, way), []).extend(group.runs)
            ways[way] = tuple(getattr(group.config, name) for name in sorted(WAYS))
    starts = {row: next(some[0].config.lr for (one, _), some in runs.items() if one == row) for row in keys}
    rows = [
        {"optimizer": title(keys[row]), "lr": starts[row]}
        | {
            f"{way}: {name}": value
            for way in ways
            for name, value in numbers_of(Group(tuple(runs.get((row, way), ())))).items()
        }
        for row in sorted(keys, key=lambda row: (rank(keys[row]), starts[row]))
    ]
    columns = {
        ("", "Optimizer"): lambda row: row["optimizer"],
        ("", "Start"): start,
        **{("Test error, %", way): error(f"{way}: ") for way in sorted(ways, key=ways.get)},
    }
    every = [run for some in runs.values() for run in some]
    return table(
        "averages",
        "Annealed steps and averaged weights",
        f"Test error in % after the last epoch ({spread_words(every)}) with the optimizer's own annealing (ACME's; the "
        "cosine of SGD and AdamW), without it or with less, and tested at the weights or at their polynomial-decay "
        f"average. lr is the learning rate, with ACME the initial step size. {caption(every)}.",
        rows,
        columns,
        notes=how(own) + notes(own, left_out, {}),
    )
