#!/usr/bin/env python3
"""Tables of a study, from its CSVs: the 8 base optimizers with and without ACME, and the initial step sizes.

Writes table, robustness and equal, .md, .tex and .csv, to OUT/STUDY, and prints a summary.
"""

from __future__ import annotations

import csv
import io
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from study import (
    LR_PAIRS,
    PAIRS,
    Group,
    Optimizer,
    Study,
    UsageError,
    command_line,
    device_of,
    load_equal,
    load_lr,
    load_table,
    write_whole,
)

if TYPE_CHECKING:
    from scipy.stats._result_classes import TtestResult

NOTHING = "—"
SIGNIFICANT = 0.05
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Column:
    name: str
    group: str = ""  #: stands above it and its neighbours of the same group
    alone: str = ""  #: its name where nothing stands above it


@dataclass(frozen=True)
class Table:
    """A table as text, and its numbers in full."""

    name: str
    columns: list[Column]
    cells: list[list[str]]
    caption: str
    notes: list[str]
    numbers: list[dict[str, object]]
    footer: int = 0  #: so many of the last rows are about the others

    @property
    def header(self) -> list[str]:
        return [column.alone or column.name for column in self.columns]

    def groups(self) -> list[tuple[str, int]]:
        """What stands above the columns, and above how many each."""
        return [(name, len(list(group))) for name, group in groupby(self.columns, lambda c: c.group)]

    def padded(self) -> list[list[list[tuple[str, bool]]]]:
        """The cells in parts, some of them to be left blank, so that the numbers of a right-aligned column align."""
        body = len(self.cells) - self.footer
        columns = [
            pad([row[number] for row in self.cells[:body]]) + pad([row[number] for row in self.cells[body:]])
            for number in range(len(self.columns))
        ]
        return [list(row) for row in zip(*columns, strict=True)]


NUMBER = re.compile(r"([+−]?\d[\d,]*)(\.\d+)?")


def pad(cells: list[str]) -> list[list[tuple[str, bool]]]:
    """The cells of a column in parts: text, and whether it is blank, as wide as the text would be."""
    found = {cell: list(NUMBER.finditer(cell)) for cell in cells if NUMBER.match(cell)}
    most = max(found, key=lambda cell: (len(found[cell]), len(cell)), default="")
    full = {cell: numbers[-1].end() for cell, numbers in found.items() if len(numbers) == len(found[most])}
    last = max((cell[end:] for cell, end in full.items()), key=len, default="")
    widest = [
        [max((number[part] or "" for number in numbers), key=len) for part in (1, 2)]
        for numbers in zip_longest(*found.values(), fillvalue=None)
        for numbers in [[number for number in numbers if number is not None]]
    ]
    padded = []
    for cell in cells:
        parts: list[tuple[str, bool]] = []
        end = 0
        for (whole, fraction), number in zip(widest, found.get(cell, []), strict=False):
            parts.append((cell[end : number.start()], False))
            parts.append(("0" * (len(whole) - len(number[1])), True))
            parts.append((number[0], False))
            parts.append((fraction[len(number[2] or "") :], True))
            end = number.end()
        parts.append((cell[end:], False))
        if cell in found:  # what the fullest cells have after as many numbers
            rest = most[found[most][len(found[cell]) - 1].end() : full[most]] + last
            parts.append((rest[len(cell) - end :], True))
        padded.append([part for part in parts if part[0]])
    return padded


@dataclass(frozen=True)
class Comparison:
    """ACME minus its counterpart, in percentage points of test error, paired by seed."""

    without: Group
    acme: Group

    @property
    def differences(self) -> list[float]:
        errors = self.without.errors
        return [error - errors[seed] for seed, error in self.acme.errors.items() if seed in errors]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.differences) if self.differences else None

    @cached_property
    def test(self) -> TtestResult | None:
        """Two-sided paired t-test; None below two common seeds, or where all differences are equal."""
        from scipy.stats import ttest_rel

        seeds = [seed for seed in self.acme.errors if seed in self.without.errors]
        if len(seeds) < 2 or len(set(self.differences)) == 1:
            return None
        return ttest_rel([self.acme.errors[s] for s in seeds], [self.without.errors[s] for s in seeds])

    @property
    def p_value(self) -> float | None:
        return None if self.test is None else float(self.test.pvalue)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean difference, by Student's t."""
        if self.test is None:
            return None
        low, high = self.test.confidence_interval(CONFIDENCE)
        return float(low), float(high)

    def interval_text(self) -> str:
        pairs, interval = len(self.differences), self.interval
        if pairs == 0:
            return NOTHING
        if pairs == 1:
            return "one seed"
        if interval is None:
            return "no spread"
        return f"{signed(interval[0])} to {signed(interval[1])}"

    def cells(self) -> list[str]:
        """The difference, its interval, and from how many seeds."""
        return [signed(self.mean), self.interval_text(), str(len(self.differences))]

    def numbers(self) -> dict[str, object]:
        low, high = self.interval or (None, None)
        return {
            "difference": self.mean,
            "pairs": len(self.differences),
            "interval_low": low,
            "interval_high": high,
            "p_value": self.p_value,
        }


def signed(number: float | None) -> str:
    return NOTHING if number is None else f"{number:+.2f}".replace("-", "−")


# ── The two tables ────────────────────────────────────────────────────────────────────────────────────


DIFFERENCE_WORDS = (
    "the difference that ACME makes in percentage points (paired by seed, with its 95 % confidence interval by "
    "Student's t and the number n of seeds)"
)
DIFFERENCE = (("Diff.", "Difference"), ("95 % interval", ""), ("n", "Seeds"))
COMPARED = [
    Column("Optimizer"),
    Column("without", "Error, %", "Error, %"),
    Column("with", "Error, %", "with ACME"),
    *(Column(short, "", name) for short, name in DIFFERENCE),
    Column("without", "Evaluations", "Evaluations"),
    Column("with", "Evaluations", "with ACME"),
    Column("without", "Seconds", "Seconds"),
    Column("with", "Seconds", "with ACME"),
]
"""The columns of `compare`."""


def compare(without_acme: Study, with_acme: Study) -> tuple[list[list[str]], list[dict[str, object]]]:
    """The 8 base optimizers of one study beside the same with ACME of another (or of the same): cells, numbers."""
    cells, numbers = [], []
    for base, adapted in PAIRS:
        without, acme = without_acme.group(base), with_acme.group(adapted)
        compared = Comparison(without, acme)
        cells.append(
            [
                base.base_name,
                error_text(without),
                error_text(acme),
                *compared.cells(),
                *(count_text(group.mean_last("evaluations")) for group in (without, acme)),
                *(seconds_text(group.mean_last("seconds")) for group in (without, acme)),
            ]
        )
        row: dict[str, object] = {"optimizer": base.base_name}
        for side, group in (("without", without), ("acme", acme)):
            row |= {f"{key}_{side}": value for key, value in group_numbers(group).items()}
        numbers.append(row | compared.numbers())
    return cells, numbers


def main_table(study: Study) -> Table:
    """The 8 base optimizers, each without and with ACME."""
    cells, numbers = compare(study, study)
    starts = " and ".join(
        f"{lr:g} ({'Adam' if adam else 'SGD'})"
        for adam in (False, True)
        for lr in sorted({lr for optimizer, lr in study.groups if optimizer.adam == adam})
    )
    return Table(
        "table",
        COMPARED,
        cells,
        f"Test error after the last epoch without and with ACME ({spread_words(study)}), {DIFFERENCE_WORDS}, gradient evaluations and "
        f"seconds of training. {study.caption}; "
        f"initial step size {starts}.",
        missing(study, PAIRS) + diverged(study) + hardware(study) + study.left_out,
        numbers,
    )


def equal_table(table: Study, equal: Study) -> Table:
    """The 8 base optimizers for as many gradient evaluations as with ACME."""
    cells, numbers = compare(equal, table)
    lacking = [pair[0].name for pair in PAIRS if not equal.group(pair[0]).seeds]
    return Table(
        "equal",
        COMPARED,
        cells,
        f"At equal gradient evaluations: test error after the last epoch ({spread_words(equal)}) of each optimizer "
        f"trained without ACME for as many evaluations as with it, rounded up to whole epochs, and "
        f"{DIFFERENCE_WORDS}, gradient evaluations and seconds of training. "
        f"Without ACME: {equal.caption}. With ACME: {table.caption}.",
        [f"Missing: {name}." for name in lacking] + diverged(equal) + hardware(table, equal) + equal.left_out,
        numbers,
    )


def equal_summary(table: Study, equal: Study) -> list[str]:
    compared = {
        pair[0].base_name: Comparison(equal.group(pair[0]), table.group(pair[1])).mean for pair in PAIRS
    }
    means = {name: mean for name, mean in compared.items() if mean is not None}
    better = [name for name, mean in means.items() if mean < 0]
    return [
        f"At equal evaluations ACME has the lower error in {len(better)} of {len(means)} pairs"
        + f": {', '.join(better)}" * bool(better)
        + "."
    ]


def robustness_table(study: Study) -> Table:
    """SGD and Adam without and with ACME, over initial step sizes."""
    columns = [Column("Start", "", "Initial step size")]
    rows = [[f"{lr:g}"] for lr in study.lrs]
    best, spread, evaluations, seconds = footer = [["Best"], ["Max − min"], ["Evaluations"], ["Seconds"]]
    numbers: dict[float, list[dict[str, object]]] = {lr: [] for lr in study.lrs}
    some_failed = False
    for pair in LR_PAIRS:
        name = pair[0].base_name
        columns += [Column("without", name, name), Column("with", name, pair[1].name)]
        columns += [Column(short, name, word) for short, word in DIFFERENCE]
        for row, lr in zip(rows, study.lrs, strict=True):
            groups = [study.group(optimizer, lr) for optimizer in pair]
            compared = Comparison(*groups)
            row += [*map(error_text, groups), *compared.cells()]
            for optimizer, group in zip(pair, groups, strict=True):
                of = {"initial_step_size": lr, "optimizer": name, "acme": int(optimizer.acme)}
                numbers[lr].append(of | group_numbers(group) | compared.numbers() if optimizer.acme else
                                   of | group_numbers(group) | dict.fromkeys(compared.numbers()))  # fmt: skip
        for optimizer in pair:
            means = start_errors(study, optimizer)
            best.append(f"{min(means.values()):.2f}" if means else NOTHING)
            spread.append(f"{max(means.values()) - min(means.values()):.2f}" if len(means) > 1 else NOTHING)
            if means and len(means) < len(study.lrs):
                spread[-1] += "†"
                some_failed = True
            runs = Group(run for lr in study.lrs for run in study.group(optimizer, lr).finished)
            evaluations.append(count_text(runs.mean_last("evaluations")))
            seconds.append(seconds_text(runs.mean_last("seconds")))
        for row in footer:
            row += [""] * len(DIFFERENCE)
    return Table(
        "robustness",
        columns,
        rows + footer,
        f"Test error in % after the last epoch without and with ACME ({spread_words(study)}) from each initial step size, and "
        f"{DIFFERENCE_WORDS}; gradient evaluations and seconds of training of a run. "
        f"The best of a column is chosen on the test set: it flatters the optimizers that need the choice. "
        f"{study.caption}.",
        ["† over the starts from which a run finished."] * some_failed
        + missing(study, LR_PAIRS)
        + diverged(study)
        + hardware(study)
        + study.left_out,
        [entry for lr in study.lrs for entry in numbers[lr]],
        len(footer),
    )


def start_errors(study: Study, optimizer: Optimizer) -> dict[float, float]:
    """Mean error from each initial step size from which a run finished."""
    errors = {lr: study.group(optimizer, lr).mean_error() for lr in study.lrs}
    return {lr: error for lr, error in errors.items() if error is not None}


def group_numbers(group: Group) -> dict[str, object]:
    return {
        "error_mean": group.mean_error(),
        "error_std": group.deviation(),
        "seeds": len(group.finished),
        "diverged": len(group.diverged),
        "evaluations": group.mean_last("evaluations"),
        "seconds": group.mean_last("seconds"),
    }


def error_text(group: Group, digits: int = 2) -> str:
    mean, deviation = group.mean_error(), group.deviation()
    if mean is None:
        return "diverged" if group.diverged else NOTHING
    text = f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}"
    if group.diverged:
        text += "*"
    return text


def count_text(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def seconds_text(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


# ── Notes ─────────────────────────────────────────────────────────────────────────────────────────────


def spread_words(study: Study) -> str:
    return "mean ± standard deviation over seeds" if len(study.seeds) > 1 else "one seed"


def missing(study: Study, pairs: Sequence[tuple[Optimizer, Optimizer]]) -> list[str]:
    """One sentence for each optimizer (and initial step size) that lacks seeds others have."""
    starts: list[float | None] = [None] if pairs is PAIRS else list(study.lrs)
    notes = []
    for optimizer in (optimizer for pair in pairs for optimizer in pair):
        for lr in starts:
            lacking = [str(seed) for seed in study.seeds if seed not in study.group(optimizer, lr).seeds]
            if lacking:
                start = "" if lr is None else f" from {lr:g}"
                notes.append(f"Missing: {optimizer.name}{start}, seed {', '.join(lacking)}.")
    return notes


def diverged(study: Study) -> list[str]:
    notes = []
    for (optimizer, lr), group in study.groups.items():
        if group.diverged:
            seeds = ", ".join(str(run.config.seed) for run in group.diverged)
            notes.append(f"Diverged: {optimizer.name} from {lr:g}, seed {seeds}.")
    if any(group.diverged and group.finished for group in study.groups.values()):
        notes.insert(0, "* over the seeds that did not diverge.")
    return notes


def hardware(*studies: Study) -> list[str]:
    runs = [run for study in studies for group in study.groups.values() for run in group.finished]
    if len({device_of(run) for run in runs}) > 1:
        return ["The runs come from several devices: their seconds do not compare."]
    return []


# ── Formats ───────────────────────────────────────────────────────────────────────────────────────────


def plain(table: Table) -> str:
    cells = [
        ["".join(" " * len(text) if blank else text for text, blank in cell) for cell in row]
        for row in table.padded()
    ]
    rows = [table.header, *cells]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]
    lines = []
    for row in rows:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    rule = "─" * (sum(widths) + 2 * len(widths) - 2)
    body = len(lines) - table.footer
    return "\n".join([lines[0], rule, *lines[1:body], *[rule] * bool(table.footer), *lines[body:]])


def markdown(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (table.header, rule, *table.cells)]
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join([table.caption, "", *lines, *notes]) + "\n"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "−": "$-$",
        "—": "---",
        "α": r"$\alpha$",
        "†": r"$\dagger$",
        "<": "$<$",
        ">": "$>$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    | {character: "\\" + character for character in "&%$#_{}"}
)


def tex(text: str) -> str:
    return text.translate(_LATEX).replace(r" \%", r"~\%")


def latex(table: Table, study: str) -> str:
    """A `table*` environment for the booktabs package, its numbers aligned."""

    def line(cells: Iterable[str]) -> str:
        return "    " + " & ".join(cells) + r" \\"

    def cell(parts: list[tuple[str, bool]]) -> str:
        texts = ((tex(text), blank) for text, blank in parts)
        return "".join(rf"\phantom{{{text}}}" if blank else text for text, blank in texts)

    above, rules, first = [], [], 1
    for name, count in table.groups():
        last = first + count - 1
        if name:
            above.append(rf"\multicolumn{{{count}}}{{c}}{{{tex(name)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{last}}}")
        else:
            above.extend([""] * count)
        first = last + 1
    names = [tex(table.columns[0].name)] + [
        rf"\multicolumn{{1}}{{r}}{{{tex(column.name)}}}" for column in table.columns[1:]
    ]
    rows = [line(map(cell, parts)) for parts in table.padded()]
    body = len(rows) - table.footer
    notes = [r"  \par\smallskip " + tex(" ".join(table.notes))] * bool(table.notes)
    return (
        "\n".join(
            [
                r"% Needs \usepackage{booktabs}.",
                r"\begin{table*}",
                r"  \centering",
                r"  \caption{" + tex(table.caption) + "}",
                r"  \par\smallskip",
                rf"  \label{{tab:{study}-{table.name}}}",
                r"  \footnotesize",
                r"  \setlength{\tabcolsep}{2pt}",
                r"  \begin{tabular*}{\textwidth}{@{\extracolsep{\fill}}l"
                + "r" * (len(table.header) - 1)
                + "@{}}",
                r"    \toprule",
                line(above),
                "    " + "".join(rules),
                line(names),
                r"    \midrule",
                *rows[:body],
                *[r"    \midrule"] * bool(table.footer),
                *rows[body:],
                r"    \bottomrule",
                r"  \end{tabular*}",
                *notes,
                r"\end{table*}",
            ]
        )
        + "\n"
    )


def write_tables(
    made: Iterable[tuple[Table, list[str]]], study: str, out: Path, problems: Iterable[str] = ()
) -> None:
    """Write each table as NAME.md, .tex and .csv to `out`, and print it with the lines of its summary."""
    out.mkdir(parents=True, exist_ok=True)
    for one, summary in made:
        for suffix, text in (("md", markdown(one)), ("tex", latex(one, study)), ("csv", numbers_csv(one))):
            write_whole(out / f"{one.name}.{suffix}", text)
        print("\n".join([one.caption, "", plain(one), "", *summary, *one.notes, ""]))
    print("\n".join([*problems, f"Written to {out}."]))


def numbers_csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table.numbers[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.numbers)
    return text.getvalue()


# ── Summary ───────────────────────────────────────────────────────────────────────────────────────────


def main_summary(study: Study) -> list[str]:
    """What won where, in sentences."""
    compared = {pair[0].base_name: Comparison(*map(study.group, pair)) for pair in PAIRS}
    means = {name: pair.mean for name, pair in compared.items() if pair.mean is not None}
    lines = []
    for words, wins in (
        ("ACME has the lower error", [name for name, mean in means.items() if mean < 0]),
        ("ACME has the higher error", [name for name, mean in means.items() if mean > 0]),
    ):
        lines.append(f"{words} in {len(wins)} of {len(means)} pairs" + f": {', '.join(wins)}." * bool(wins))
        lines[-1] += "." * (not wins)
    tested = [pair.p_value for pair in compared.values() if pair.p_value is not None]
    if tested:
        count = sum(p < SIGNIFICANT for p in tested)
        lines.append(f"{count} of {len(tested)} paired tests give p < {SIGNIFICANT} (not corrected).")
    else:
        lines.append("One seed: no test tells these differences from chance.")
    errors = [(group.mean_error(), optimizer.name) for (optimizer, _), group in study.groups.items()]
    finished = sorted((error, name) for error, name in errors if error is not None)
    if finished:
        lines.append(f"Lowest error: {finished[0][1]}, {finished[0][0]:.2f} %.")
    return lines


def robustness_summary(study: Study) -> list[str]:
    lines = []
    for optimizer in (optimizer for pair in LR_PAIRS for optimizer in pair):
        means = start_errors(study, optimizer)
        if means:
            best = min(means, key=lambda lr: means[lr])
            lines.append(
                f"{optimizer.name}: {min(means.values()):.2f} to {max(means.values()):.2f} % over "
                f"{len(means)} of {len(study.lrs)} initial step sizes, best from {best:g}."
            )
    return lines


def tables_of(results: Path, name: str) -> tuple[list[tuple[Table, list[str]]], list[str]]:
    """A study's tables, each with its summary in sentences, and why there are not more.

    Raises:
        UsageError: there are none.
    """
    made: list[tuple[Table, list[str]]] = []
    problems = []
    table = None
    try:
        table = load_table(results, name)
        made.append((main_table(table), main_summary(table)))
    except UsageError as problem:
        problems.append(f"No table: {problem}")
    try:
        study = load_lr(results, name)
        made.append((robustness_table(study), robustness_summary(study)))
    except UsageError as problem:
        problems.append(f"No robustness: {problem}")
    if table is not None:
        try:
            study = load_equal(results, name, table)
            made.append((equal_table(table, study), equal_summary(table, study)))
        except UsageError as problem:
            problems.append(f"No equal: {problem}")
    if not made:
        raise UsageError("\n".join(problems))
    return made, problems


def work(results: Path, name: str, out: Path) -> None:
    made, problems = tables_of(results, name)
    write_tables(made, name, out, problems)


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
