#!/usr/bin/env python3
"""ACME beside its peers on several tasks at once: one figure and one table, of the studies named.

Writes overview, .pdf, .png, .md, .tex and .csv, to OUT/peers. The numbers are those of each study's own tables
(make_peer_tables.py), the panels those of its own figure (plot_peers.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from make_peer_tables import prefixed
from make_tables import NOTHING, Column, Table, error_text, group_numbers, write_tables
from peer_study import METHODS, Method, PeerStudy, load_peers, spread
from plot_peers import (
    FAMILIES,
    LOOKS,
    chance_handle,
    diverged_handle,
    draw_robustness,
    robustness_axes,
)
from study import FULL_WIDTH, UsageError, save, style

from icassp25.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "overview"
TASKS = {"cifar100": "CIFAR-100", "text": "text", "digits": "digits"}
"""Data sets in a word; others by their title."""


def config_of(study: PeerStudy) -> RunConfig:
    """Of one of the study's runs."""
    by_scale = next(iter(study.runs.values()))
    return next(iter(next(iter(by_scale.values())).values())).config


def task(study: PeerStudy) -> str:
    config = config_of(study)
    return TASKS.get(config.dataset, config.about.title)


def methods_of(studies: Sequence[PeerStudy]) -> list[Method]:
    """Those that some study has."""
    there = {method.key for study in studies for method in study.whole_methods}
    return [method for key, method in METHODS.items() if key in there]


def per_step(study: PeerStudy, key: str) -> float | None:
    """Gradient evaluations a step, on average over a training."""
    evaluations, steps = study.cost(key), study.cost(key, "steps")
    return evaluations / steps if evaluations and steps else None


def evaluations_text(values: Sequence[float]) -> str:
    ends = [f"{value:.3g}" for value in (min(values), max(values))] if values else [NOTHING]
    return " to ".join(dict.fromkeys(ends))


def overview_table(studies: Sequence[PeerStudy]) -> Table:
    """Every method in every study: from its default scale, tuned, and from one scale drawn at random."""
    cells, numbers, starred = [], [], False
    for method in methods_of(studies):
        costs = [cost for study in studies if (cost := per_step(study, method.key)) is not None]
        line = [method.title, evaluations_text(costs)]
        for study in studies:
            default, (tuned, chosen) = study.default(method.key), study.tuned(method.key)
            drawn = spread(study.budget(method.key, 1))
            line += [
                error_text(default, 1),
                error_text(tuned, 1),
                NOTHING if drawn is None else f"{drawn[0]:.1f}",
            ]
            numbers.append(
                {"optimizer": method.title, "task": task(study)}
                | {"evaluations_per_step": per_step(study, method.key)}
                | prefixed("default", group_numbers(default))
                | prefixed("tuned", group_numbers(tuned))
                | {"chosen": chosen, "scales": len(study.scales)}
                | {"random_error": drawn[0] if drawn else None}
                | {"random_seeds": len(study.searches(method.key))}
            )
            starred |= any(group.errors and group.diverged for group in (default, tuned))
        cells.append(line)
    notes = [f"{task(study)}: {study.whole_caption}; {len(study.scales)} scales." for study in studies]
    for study in studies:
        notes += [f"{task(study)}: {note}" for note in study.missing()]
    return Table(
        NAME,
        [
            Column("Optimizer"),
            Column("evaluations a step", "", "Evaluations a step"),
            *(
                Column(side, f"{task(study)}, error in %", f"{task(study)}: {side}")
                for study in studies
                for side in ("default", "tuned", "random")
            ),
        ],
        cells,
        "ACME beside its peers: test error in % after the last epoch, mean ± standard deviation over the seeds: from the "
        "default scale; tuned, which is from the scale with the lowest last-epoch validation error with the first seed, after a "
        "run from each; and random, which is to be expected of one run from a scale drawn at random from those "
        "over six decades (a diverged run counts as guessing)." + " * without diverged seeds." * starred,
        notes,
        numbers,
    )


def plot_overview(studies: Sequence[PeerStudy]) -> Figure:
    """The robustness of each study: a row for each family, a column for each study."""
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figure = pyplot.figure(figsize=(FULL_WIDTH, 6.0))
    rows = figure.subfigures(len(FAMILIES), 1)
    grids = [row.subplots(1, len(studies), squeeze=False)[0] for row in rows]
    drawn = [
        [draw_robustness(axes, study, family) for axes, study in zip(grid, studies, strict=True)]
        for grid, family in zip(grids, FAMILIES, strict=True)
    ]
    lowest = [min(low for low, _ in column) for column in zip(*drawn, strict=True)]
    for row, grid, family, panels in zip(rows, grids, FAMILIES, drawn, strict=True):
        most = max(lines for _, lines in panels)
        for axes, study, low in zip(grid, studies, lowest, strict=True):
            robustness_axes(axes, study, low, decades=3)
            axes.set_title(f"{task(study)} ({config_of(study).model})", pad=6 + 5 * most)
        grid[0].set_ylabel(f"{family} and what builds on it:\ntest error after the last epoch, %")
        grid[len(studies) // 2].set_xlabel("scale, in multiples of the method's default")
        methods = [m for m in methods_of(studies) if m.family == family and m.key in LOOKS]
        handles = [Line2D([], [], label=method.title, **LOOKS[method.key]) for method in methods]
        if row is rows[-1]:
            handles += [chance_handle(), diverged_handle()]
        row.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=2.6, columnspacing=1.5)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="writes to OUT/peers; %(default)s")
    parser.add_argument("--studies", nargs="+", required=True, help="folders of --results")
    options = parser.parse_args()
    try:
        studies = [load_peers(options.results, name) for name in options.studies]
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    out = options.out / "peers"
    write_tables([(overview_table(studies), [])], "peers", out)
    style()
    save(plot_overview(studies), out, NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main())
