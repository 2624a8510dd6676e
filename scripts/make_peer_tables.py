#!/usr/bin/env python3
"""Tables of ACME beside its peers: at the same epochs, at the same gradient evaluations, and search included.

Writes peers, peers_equal and peers_budget, .md, .tex and .csv, to OUT/STUDY, and prints a summary.
"""

from __future__ import annotations

import sys
from pathlib import Path

from make_tables import (
    NOTHING,
    Column,
    Comparison,
    Table,
    count_text,
    error_text,
    group_numbers,
    seconds_text,
    signed,
    write_tables,
)
from peer_study import METHODS, Method, PeerStudy, load_peers, spread
from study import command_line, device_of

BUDGETS = (1, 2, 3, 4, 5, 6, 7, 14)
"""Gradient evaluations in all, in those of one run at one evaluation a step."""


def words(study: PeerStudy) -> str:
    return "mean ± standard deviation over seeds" if len(study.seeds) > 1 else "one seed"


def how(study: PeerStudy) -> list[str]:
    """A line for each method: what its scale is, how it is used, and who says so."""
    return [
        f"{method.title}: ×1 is {method.default:g}, the {method.scale}; {method.how} ({method.source})."
        for method in study.whole_methods
    ]


def notes(study: PeerStudy, shortened: bool = False) -> list[str]:
    """What the reader has to know of the runs; `shortened`: of those too."""
    devices = {
        device_of(run)
        for by_scale in study.runs.values()
        for by_seed in by_scale.values()
        for run in by_seed.values()
    }
    if study.step_seconds:
        seconds = [
            "Seconds: the steps of a run times what one takes in benchmarks/peers.py, tests and start left out."
        ]
    else:
        seconds = ["The runs come from several devices: their seconds do not compare."] * (len(devices) > 1)
    return study.missing(shortened) + study.diverged() + seconds + study.left_out


def worst_text(study: PeerStudy, method: Method) -> tuple[str, float | None, int]:
    """The largest mean error over the scales as text and number, and at how many scales some seed diverged."""
    groups = [study.group(method.key, scale) for scale in study.scales]
    errors = [error for group in groups if (error := group.mean_error()) is not None]
    lost = sum(bool(group.diverged) for group in groups)
    text = f"{max(errors):.2f}" if errors else NOTHING
    if lost:
        text += f", diverged at {lost} of {len(groups)}"
    return text, max(errors, default=None), lost


def compared(comparison: Comparison) -> list[str]:
    return [signed(comparison.mean), comparison.interval_text()]


def differences() -> list[Column]:
    """The columns of `compared`, to the default and to the tuned scale."""
    return [
        column
        for side in ("ACME − default", "ACME − tuned")
        for column in (Column("points", side, side), Column("95 % interval", side))
    ]


def prefixed(side: str, numbers: dict[str, object]) -> dict[str, object]:
    return {f"{side}_{name}": value for name, value in numbers.items()}


def peers_table(study: PeerStudy) -> Table:
    """Every method from its default scale, tuned, and at its worst, at the same epochs."""
    cells, numbers = [], []
    for method in study.whole_methods:
        default, (tuned, chosen) = study.default(method.key), study.tuned(method.key)
        acme = study.default(study.counterpart(method).key)
        untuned, searched = Comparison(default, acme), Comparison(tuned, acme)
        worst, worst_error, lost = worst_text(study, method)
        cells.append(
            [
                method.title,
                error_text(default),
                error_text(tuned),
                NOTHING if chosen is None else f"×{chosen:g}",
                worst,
                count_text(study.cost(method.key)),
                seconds_text(study.cost(method.key, "seconds")),
                str(len(default.seeds)),
                *([NOTHING] * 4 if method.acme else compared(untuned) + compared(searched)),
            ]
        )
        numbers.append(
            {"optimizer": method.title, "scale": method.scale, "default": method.default}
            | prefixed("default", group_numbers(default))
            | prefixed("tuned", group_numbers(tuned))
            | {"chosen": chosen, "worst_error": worst_error}
            | {"scales": len(study.scales), "scales_diverged": lost}
            | prefixed("default", {} if method.acme else untuned.numbers())
            | prefixed("tuned", {} if method.acme else searched.numbers())
        )
    words_of = {"kept": "a step size that is kept", "rare": "rare look-aheads"}
    cheap = " or ".join(words_of[way] for way in study.cheap)
    names = list(dict.fromkeys(name for row in numbers for name in row))
    numbers = [{name: row.get(name) for name in names} for row in numbers]
    return Table(
        "peers",
        [
            Column("Optimizer"),
            Column("default", "Test error, %", "Default"),
            Column("tuned", "Test error, %", "Tuned"),
            Column("at", "Test error, %"),
            Column("worst", "Test error, %", "Worst"),
            Column("Evaluations"),
            Column("Seconds"),
            Column("Seeds"),
            *differences(),
        ],
        cells,
        f"ACME beside its peers, at the same epochs: test error in % after the last epoch ({words(study)}) from the "
        f"default scale, from the scale of {len(study.scales)} with the lowest last-epoch validation error (chosen with the "
        "first seed, and used with all), and from the worst scale (mean over seeds); gradient evaluations and seconds of one run. "
        f"The differences are those of ACME with the same base (SGD or Adam) and {cheap}, with averaged weights and Adam's with "
        "unbiased squares if they have been run (as published beside SAM and "
        "ASAM, which evaluate twice a step), from its default, in percentage points, paired "
        f"by seed, with their 95 % confidence interval by Student's t. {study.whole_caption}.",
        how(study) + notes(study),
        numbers,
    )


def equal_table(study: PeerStudy) -> Table:
    """Every peer beside ACME at no more gradient evaluations, or about as many."""
    cells, numbers = [], []
    published = ("sgd-acme-half", "adam-acme-half")
    methods = [method for method in study.methods if not method.acme or method.key in published]
    others = [study.counterpart(method, equal=True) for method in methods]
    costs = [
        (study.cost(other.key), study.cost(method.key)) for other, method in zip(others, methods, strict=True)
    ]
    no_more = all(with_acme <= without for with_acme, without in costs if with_acme and without)
    for method, other in zip(methods, others, strict=True):
        default, (tuned, _), acme = (
            study.default(method.key),
            study.tuned(method.key),
            study.default(other.key),
        )
        untuned, searched = Comparison(default, acme), Comparison(tuned, acme)
        cells.append(
            [
                method.title,
                error_text(default),
                error_text(tuned),
                error_text(acme),
                *compared(untuned),
                *compared(searched),
                *(count_text(study.cost(key)) for key in (method.key, other.key)),
                *(seconds_text(study.cost(key, "seconds")) for key in (method.key, other.key)),
            ]
        )
        numbers.append(
            {"optimizer": method.title, "acme": other.title}
            | prefixed("default", group_numbers(default) | untuned.numbers())
            | prefixed("tuned", group_numbers(tuned) | searched.numbers())
            | prefixed("acme", group_numbers(acme))
        )
    return Table(
        "peers_equal",
        [
            Column("Optimizer"),
            Column("default", "Test error, %", "Default"),
            Column("tuned", "Test error, %", "Tuned"),
            Column("ACME", "Test error, %"),
            *differences(),
            Column("without", "Evaluations", "Evaluations"),
            Column("with ACME", "Evaluations"),
            Column("without", "Seconds", "Seconds"),
            Column("with ACME", "Seconds"),
        ],
        cells,
        f"ACME beside its peers, at {'no more' if no_more else 'about as many'} gradient evaluations: one run of each. ACME from its "
        f"default scale, with the same base ({'; '.join(dict.fromkeys(other.title for other in others))}), beside SAM and ASAM, which "
        "evaluate twice a step, as published; as published also for half the epochs, among the peers. Test error "
        f"in % after the last epoch ({words(study)}); the tuned scale has the lowest last-epoch validation error of "
        f"{len(study.scales)} with the first seed, whose runs are not counted here. Differences in percentage points, paired by seed, with their "
        f"95 % confidence interval by Student's t. {study.caption}.",
        notes(study, shortened=True),
        numbers,
    )


def unit(study: PeerStudy) -> float | None:
    """Evaluations of one run at one evaluation a step: the cheapest whole run."""
    costs = [cost for method in study.whole_methods if (cost := study.cost(method.key))]
    return min(costs, default=None)


def draws(study: PeerStudy, method: Method, budget: float) -> int:
    """How many of a method's runs a budget pays for, at most one from each scale."""
    cost = study.cost(method.key)
    return min(int(budget / cost + 1e-6), len(study.scales)) if cost else 0


def budget_table(study: PeerStudy) -> Table | None:
    """The test error of a random search over the scales, for a number of evaluations in all."""
    one = unit(study)
    if one is None:
        return None
    cells, numbers = [], []
    for method in study.whole_methods:
        line = [method.title, count_text(study.cost(method.key))]
        for budget in BUDGETS:
            count = draws(study, method, budget * one)
            found = spread(study.budget(method.key, count)) if count else None
            directed = spread(study.budget(method.key, count, outwards=True)) if count else None
            if found is None or directed is None:
                line.append(NOTHING)
                continue
            line.append(f"{found[0]:.2f}" + (f" ± {found[1]:.2f}" if found[1] is not None else ""))
            numbers.append(
                {
                    "optimizer": method.title,
                    "evaluations": round(budget * one),
                    "runs": count,
                    "seeds": len(study.searches(method.key)),
                    "random_error_mean": found[0],
                    "random_error_std": found[1],
                    "outwards_error_mean": directed[0],
                    "outwards_error_std": directed[1],
                }
            )
        cells.append(line)
    if not numbers:
        return None
    short = [
        f"Left out of the searches: {method.title}, seed {seed}: not every scale has its run."
        for method in study.whole_methods
        for seed in study.seeds
        if seed not in study.searches(method.key)
    ]
    return Table(
        "peers_budget",
        [
            Column("Optimizer"),
            Column("A run", "Gradient evaluations"),
            *(Column(f"{budget * one:,.0f}", "Gradient evaluations") for budget in BUDGETS),
        ],
        cells,
        "What a user gets who does not know the scale: the expected test error in % of the best by last-epoch validation error "
        f"of the runs that a number of gradient evaluations pays for, search included, at scales drawn without replacement "
        f"from {len(study.scales)} over the decades around the default (after Dodge et al., Show Your Work, EMNLP 2019; "
        f"{words(study)}). A diverged run counts as {study.chance:.3g} % and is never chosen before one that is not. The CSV has the "
        f"same for a search from the default outwards. {study.caption}.",
        notes(study) + short,
        numbers,
    )


def summary(study: PeerStudy) -> list[str]:
    lines = []
    for key in (
        "sgd-acme-kept-averaged",
        "adam-acme-kept-averaged",
        "sgd-acme-kept",
        "adam-acme-kept-unbiased",
        "adam-acme-kept",
        "sgd-acme-averaged",
        "adam-acme-averaged",
        "sgd-acme-rare",
        "adam-acme-unbiased",
        "adam-acme-rare",
    ):
        acme, rivals = (
            METHODS[key],
            [m for m in study.methods if not m.acme and m.family == METHODS[key].family],
        )
        for name, groups in (
            ("default", {m.title: study.default(m.key) for m in rivals}),
            ("tuned", {m.title: study.tuned(m.key)[0] for m in rivals}),
        ):
            means = {
                title: mean
                for title, group in groups.items()
                if (mean := Comparison(group, study.default(key)).mean) is not None
            }
            if means:
                ahead = [title for title, mean in means.items() if mean < 0]
                lines.append(
                    f"{acme.title} from its default is ahead of {len(ahead)} of {len(means)} {name} peers"
                    + f": {', '.join(ahead)}" * bool(ahead)
                    + "."
                )
    return lines


def tables_of(study: PeerStudy) -> list[tuple[Table, list[str]]]:
    made = [(peers_table(study), summary(study))]
    if any(not method.acme for method in study.methods):
        made.append((equal_table(study), []))
    budget = budget_table(study)
    if budget is not None:
        made.append((budget, []))
    return made


def work(results: Path, name: str, out: Path) -> None:
    write_tables(tables_of(load_peers(results, name)), name, out)


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
