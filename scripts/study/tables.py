"""The tables of a folder of runs: of pairs without and with ACME, of starts, of options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from icassp25.config import UsageError
from study.runs import DEFAULTS, FLAGS, OPTIONS, Group, by_key, leave_out, load, runs_of, varied
from study.stats import SIGNIFICANT, Numbers, compare, numbers_of
from study.titles import PAIRS, title
from study.words import ahead, caption, given, how, missing, notes, scale_of, text_of
from study.write import NOTHING, Table

Cells = Mapping[tuple[str, str], Callable[[Numbers], str]]
"""By column (what stands above it, or nothing, and its name), how a row's numbers become its cell."""

STARTS = ("sgd", "adam")
"""Those whose initial step size is varied, without and with ACME."""
SIDES = {"without": "", "with": "-acme"}
"""Of a pair, the ends of their keys."""


def table(name: str, heading: str, words: str, rows: list[Numbers], columns: Cells, **more: object) -> Table:
    texts = {column: [text(row) for row in rows] for column, text in columns.items()}
    frame = pd.DataFrame(texts, columns=pd.MultiIndex.from_tuples(texts))
    # Whole numbers stay whole beside gaps.
    return Table(name, heading, words, frame, pd.DataFrame(rows, dtype=object), **more)


# ── Cells ─────────────────────────────────────────────────────────────────────────────────────────────

OPTIMIZER: Cells = {("", "Optimizer"): lambda row: row["optimizer"]}


def number(name: str, text: str = ",.0f") -> Callable[[Numbers], str]:
    """A row's number in a format."""
    return lambda row: (
        NOTHING if row[name] is None else ("−" * (row[name] < 0) + format(row[name], text).lstrip("-"))
    )


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


def difference(side: str = "", above: str = "Difference") -> Cells:
    def interval(row: Numbers) -> str:
        low, high = (number(side + name, "+.2f")(row) for name in ("interval_low", "interval_high"))
        pairs = row[f"{side}pairs"]
        few = NOTHING if not pairs else "one seed" if pairs == 1 else "no spread"
        return few if low == NOTHING else f"{low} to {high}"

    return {(above, "points"): number(f"{side}difference", "+.2f"), (above, "95 % interval"): interval}


def prefixed(side: str, numbers: Numbers) -> Numbers:
    return {side + name: value for name, value in numbers.items()}


# ── Pairs ─────────────────────────────────────────────────────────────────────────────────────────────


def keys_of(bases: Iterable[str]) -> list[str]:
    """Each without and with ACME."""
    return [base + end for base in bases for end in SIDES.values()]


def load_pairs(
    folder: Path, free: frozenset[str] = frozenset(), bases: tuple[str, ...] = PAIRS
) -> tuple[list[Group], list[str]]:
    """The groups of `bases`, without and with ACME, and why others are left out; `free` may differ within a key."""
    groups, left_out = load(folder, FLAGS | {"lr"} | free, free)
    for group in groups:
        if group.key not in keys_of(bases):
            leave_out(left_out, [group], f"{group.key} has no place here")
    groups = [group for group in groups if group.key in keys_of(bases)]
    if not groups:
        raise UsageError(" ".join([f"{folder} holds no run of {' or '.join(map(title, bases))}.", *left_out]))
    return groups, left_out


def load_starts(folder: Path) -> tuple[list[Group], list[str]]:
    return load_pairs(folder, frozenset({"lr"}), STARTS)


def paired(groups: Mapping[object, Group], *keys: object) -> Numbers:
    """The numbers of two groups, without ACME and with, and how they differ."""
    pair = [groups.get(key, Group()) for key in keys]
    numbers = [prefixed(f"{side}_", numbers_of(group)) for side, group in zip(SIDES, pair, strict=True)]
    return {**numbers[0], **numbers[1], **compare(*pair)}


def pairs_table(name: str, heading: str, words: str, groups: Mapping[str, Group], lines: list[str]) -> Table:
    """Each of PAIRS without ACME beside the same with it."""
    rows = [{"optimizer": title(key)} | paired(groups, key, f"{key}-acme") for key in PAIRS]
    tested = [row["p_value"] for row in rows if row["p_value"] is not None]
    certain = f"{sum(p < SIGNIFICANT for p in tested)} of {len(tested)} paired tests give p < {SIGNIFICANT}"
    best = min(groups.values(), key=lambda group: group.error if group.errors else 100.0)
    columns = {
        **OPTIMIZER,
        **{("Error, %", side): error(f"{side}_") for side in SIDES},
        **difference(),
        ("", "Seeds"): number("pairs"),
        **{("Evaluations", side): number(f"{side}_evaluations") for side in SIDES},
        **{("Seconds", side): seconds(f"{side}_seconds") for side in SIDES},
    }
    summary = [
        ahead("ACME has the lower error in", {row["optimizer"]: row["difference"] for row in rows}),
        f"{certain} (not corrected)." if tested else "One seed: no test tells these differences from chance.",
        f"Lowest error: {title(best.key)}, {number('error', '.2f')({'error': best.error})} %.",
    ]
    return table(name, heading, words, rows, columns, notes=lines, summary=summary)


def main_table(results: Path, study: str) -> Table:
    """The 8 base optimizers, each without and with ACME, from one initial step size each."""
    groups, left_out = load_pairs(results / study / "table")
    lrs = {
        group.config.lr: title(key) for key, some in by_key(groups).items() for group in some if key in STARTS
    }
    starts = " and ".join(f"{lr:g} ({base})" for lr, base in lrs.items())
    what = "Without and with ACME" + f", initial step size {starts}" * bool(starts)
    return pairs_table(
        "table",
        "The 16 optimizers",
        caption(what, runs_of(groups), "differences", "cost"),
        {group.key: group for group in groups},
        missing(groups, dict.fromkeys(keys_of(PAIRS), 1)) + notes(groups, left_out),
    )


def equal_table(results: Path, study: str) -> Table:
    """The 8 base optimizers, each trained for as many gradient evaluations as the table's with ACME."""
    groups, left_out = load_pairs(results / study / "equal", frozenset({"epochs"}))
    table = {group.key: group for group in load_pairs(results / study / "table")[0]}
    acme = {key: group for key, group in table.items() if key.endswith("-acme")}
    found = {group.key: group for group in groups}
    for key, group in list(found.items()):
        other = acme.get(f"{key}-acme", Group())
        wanted, there = other.mean("evaluations"), group.mean("evaluations")
        epoch = group.config.steps_per_epoch * (1 + group.config.asam)
        different = varied([group, other]) - {"acme", "epochs"} if wanted else ()
        if wanted is None:
            reason = "nothing in the table to compare it with"
        elif different:
            reason = f"it differs from the table's in {', '.join(sorted(different))}"
        elif there is not None and not wanted <= there < wanted + epoch:
            reason = f"{there:,.0f} evaluations, where ACME's run took {wanted:,.0f}"
        else:
            continue
        leave_out(left_out, [found.pop(key)], reason)
    if not found:
        raise UsageError(" ".join([f"{results / study / 'equal'} holds no run to compare.", *left_out]))
    what = "At equal gradient evaluations, without ACME for as many as with it, rounded up to whole epochs"
    words = caption(what, runs_of(found.values()), "differences", "cost")
    both = [*found.values(), *acme.values()]
    return pairs_table(
        "equal",
        "Equal evaluations",
        f"{words} With ACME: {scale_of(runs_of(acme.values()))}.",
        found | acme,
        missing(list(found.values()), dict.fromkeys(PAIRS, 1)) + notes(both, left_out),
    )


def starts_table(results: Path, study: str) -> Table:
    """SGD and Adam without and with ACME, over initial step sizes."""
    groups, left_out = load_starts(results / study / "lr")
    found = {(group.key, group.config.lr): group for group in groups}
    rows: list[Numbers] = [{"lr": lr} for lr in sorted({lr for _, lr in found})]
    columns = {("", "lr"): number("lr", "g")}
    summary, footer = [], {"Best": {}, "Max − min": {}, "Evaluations": {}, "Seconds": {}}
    for base in STARTS:
        for row in rows:
            row |= prefixed(f"{base}_", paired(found, (base, row["lr"]), (f"{base}-acme", row["lr"])))
        columns |= {(title(base), side): error(f"{base}_{side}_") for side in SIDES}
        columns |= difference(f"{base}_", title(base)) | {(title(base), "seeds"): number(f"{base}_pairs")}
        for side, end in SIDES.items():
            some = [group for group in groups if group.key == base + end]
            errors = {group.config.lr: group.error for group in some if group.errors}
            best, worst = min(errors, key=errors.get, default=None), max(errors, key=errors.get, default=None)
            every, low, high = Group(tuple(runs_of(some))), errors.get(best), errors.get(worst)
            numbers = {"best": low, "range": high - low if len(errors) > 1 else None}
            numbers |= {name: every.mean(name) for name in ("evaluations", "seconds")}
            texts = number("best", ".2f"), number("range", ".2f"), number("evaluations"), seconds("seconds")
            for line, text in zip(footer.values(), texts, strict=True):
                line[title(base), side] = text(numbers)
            if errors:
                footer["Max − min"][title(base), side] += "†" * (len(errors) < len(rows))
                lrs = f"{len(errors)} of {len(rows)} initial step sizes, best from {best:g}"
                summary.append(f"{title(base + end)}: {low:.2f} to {high:.2f} % over {lrs}.")
    dagger = ["† over the starts from which a run finished."] * ("†" in "".join(footer["Max − min"].values()))
    what = "From each initial step size, without and with ACME. The best of a column is chosen on the test set, which "
    what += "flatters the optimizers that need the choice"
    return table(
        "robustness",
        "Initial step sizes",
        caption(what, runs_of(groups), "differences", "cost"),
        rows,
        columns,
        notes=dagger + missing(groups, dict.fromkeys(keys_of(STARTS), len(rows))) + notes(groups, left_out),
        summary=summary,
    ).below(footer)


# ── Options ───────────────────────────────────────────────────────────────────────────────────────────


def option(name: str) -> Callable[[Numbers], str]:
    """A row's option; nothing where only ACME has it."""
    return lambda row: text_of(row[name]) if row["acme"] or row[name] != DEFAULTS[name] else NOTHING


def validation_error(group: Group) -> float | None:
    """In %, of the runs that did not diverge."""
    found = group.mean("validation_error") if group.config.validation else None
    return None if found is None else 100 * found


def options_table(results: Path, study: str, folder: str) -> Table:
    """A row for each set of options in a folder, a column for each option in which runs of one key differ."""
    groups, left_out = load(results / study / folder)
    different = {"lr"}.union(*map(varied, by_key(groups).values()))
    flags = {name for name in different if isinstance(DEFAULTS[name], bool)}
    names = [name for name in OPTIONS if name in different - flags]
    validation = {("", "Validation, %"): number("validation_error", ".2f")}
    rows = [
        {"optimizer": ", ".join([title(group.key), *given(group.config, flags)]), "acme": group.config.acme}
        | {name: getattr(group.config, name) for name in names}
        | {"step_size": group.mean("step_size"), **numbers_of(group)}
        | {"validation_error": validation_error(group)}
        for key, some in by_key(groups).items()
        for group in sorted(
            some, key=lambda group: [getattr(group.config, name) or 0 for name in [*flags, *names]]
        )
    ]
    columns = {
        **OPTIMIZER,
        **{("", name): option(name) for name in names},
        ("", "Evaluations"): number("evaluations"),
        ("", "Last step size"): number("step_size", ".3g"),
        **(validation if groups[0].config.validation else {}),
        ("", "Error, %"): error(),
        ("", "Seeds"): lambda row: str(row["seeds"] + row["diverged"]),
    }
    words = caption(f"Runs of {folder}/ with the step size at their end", runs_of(groups), "cost", "lr")
    lines = how(groups) + notes(groups, left_out)
    return table(folder, f"Runs of {folder}/", words, rows, columns, notes=lines)
