#!/usr/bin/env python3
"""Curves of a study's table runs: test error, training loss, step size and shares of the decision codes.

Each is drawn against epochs, gradient evaluations and seconds of training, one panel a base optimizer.
Writes test_error_epoch.pdf and .png and so on to OUT/STUDY.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from study import (
    BLACK,
    BLUE,
    FULL_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    PAIR_STYLE,
    PAIRS,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    Group,
    Study,
    command_line,
    load_table,
    save,
    style,
    title,
)

from icassp25.runlog import SHARES, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABSCISSAE = {
    "epoch": "epoch",
    "evaluations": "gradient evaluations",
    "seconds": "seconds of training",
}
ORDINATES = {
    "test_error": "test error, %",
    "train_loss": "training loss",
    "step_size": "step size",
}
SIDES = {"without ACME": 0, "with ACME": 1}
"""Position in a pair of optimizers, and in the pair of line styles."""
DECISIONS = (
    ("0 unclear", GREY),
    ("1 cubic", BLUE),
    ("2 cubic, look-ahead worse", SKY),
    ("3 parabola at the end", GREEN),
    ("4 parabola at the start", YELLOW),
    ("5 extrapolated up", ORANGE),
    ("6 extrapolated down", VERMILLION),
    ("7 other", PURPLE),
    ("non-finite", BLACK),
)
"""Names and colours of the decision codes, in the order of the CSV's shares."""


def values(run: Run, column: str) -> np.ndarray:
    scale = 100 if column.endswith("_error") else 1
    return scale * run.frame[column].to_numpy(dtype=float)


def draw_group(axes: Axes, group: Group, abscissa: str, ordinate: str, look: dict[str, Any]) -> None:
    """The mean over the seeds with a band from the smallest to the largest; diverged runs end in a cross."""
    if group.finished:
        x = np.mean([values(run, abscissa) for run in group.finished], axis=0)
        y = np.array([values(run, ordinate) for run in group.finished])
        axes.plot(x, y.mean(axis=0), markevery=max(1, len(x) // 6), **look)
        if len(y) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=look["color"], alpha=0.25, linewidth=0)
    for run in group.diverged:
        x, y = values(run, abscissa), values(run, ordinate)
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        axes.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=0.6)
        axes.plot(x[-1:], y[-1:], color=look["color"], linestyle="", marker="x", markersize=5, clip_on=False)


def panels(study: Study, abscissa: str, sides: dict[str, int]) -> tuple[Figure, list[Axes]]:
    """One panel a base optimizer, on the same axes; a panel's title counts the runs that diverged or lack."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, grid = pyplot.subplots(2, 4, figsize=(FULL_WIDTH, 3.9), sharex=True, sharey=True)
    for axes, pair in zip(grid.flat, PAIRS, strict=True):
        groups = {words: study.group(pair[side]) for words, side in sides.items()}
        lost = [
            f"{words.removesuffix(' ACME')}: {len(group.diverged)} of {len(group.seeds)} diverged"
            for words, group in groups.items()
            if group.diverged
        ]
        lost += [
            f"{words.removesuffix(' ACME')}: {len(group.seeds)} of {len(study.seeds)} seeds"
            for words, group in groups.items()
            if 0 < len(group.seeds) < len(study.seeds)
        ]
        axes.set_title("\n".join([pair[0].base_name, *lost]))
    for axes in grid[-1]:
        axes.set_xlabel(ABSCISSAE[abscissa])
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(5, integer=abscissa != "seconds"))
    return figure, list(grid.flat)


def legend(figure: Figure, handles: list[Any], columns: int) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def plot_pairs(study: Study, abscissa: str, ordinate: str) -> Figure:
    """Each base optimizer with and without ACME."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, grid = panels(study, abscissa, SIDES)
    for axes, pair in zip(grid, PAIRS, strict=True):
        for optimizer, look in zip(pair, PAIR_STYLE, strict=True):
            draw_group(axes, study.group(optimizer), abscissa, ordinate, look)
    if ordinate == "step_size":
        grid[0].set_yscale("log")
    if abscissa != "epoch":
        grid[0].set_xlim(left=0)
    figure.supylabel(ORDINATES[ordinate])
    handles = [Line2D([], [], label=words, **PAIR_STYLE[side]) for words, side in SIDES.items()]
    if len(study.seeds) > 1:
        handles.append(Patch(color=GREY, alpha=0.4, linewidth=0, label="smallest to largest over seeds"))
    if any(group.diverged for group in study.groups.values()):
        handles.append(Line2D([], [], color=GREY, linestyle="", marker="x", label="diverged"))
    legend(figure, handles, len(handles))
    title(figure, ("Mean over seeds. " if len(study.seeds) > 1 else "") + study.caption)
    return figure


def plot_decisions(study: Study, abscissa: str) -> Figure:
    """Shares of the decision codes among each epoch's steps, with ACME; the mean over seeds."""
    from matplotlib.patches import Patch

    figure, grid = panels(study, abscissa, {"with ACME": SIDES["with ACME"]})
    for axes, (_, optimizer) in zip(grid, PAIRS, strict=True):
        runs = study.group(optimizer).finished
        axes.grid(False)
        if not runs:
            continue
        edges = np.concatenate([[0], np.mean([values(run, abscissa) for run in runs], axis=0)])
        base = np.zeros(len(edges) - 1)
        for column, (_, color) in zip(SHARES, DECISIONS, strict=True):
            top = base + 100 * np.mean([values(run, column) for run in runs], axis=0)
            axes.stairs(top, edges, baseline=base, fill=True, color=color, linewidth=0)
            base = top
    grid[0].set_ylim(0, 100)
    grid[0].margins(x=0)
    figure.supylabel("share of the steps of an epoch, %")
    legend(figure, [Patch(color=color, label=name, linewidth=0) for name, color in DECISIONS], 5)
    title(figure, "With ACME" + (", mean over seeds. " if len(study.seeds) > 1 else ". ") + study.caption)
    return figure


def work(results: Path, name: str, out: Path) -> None:
    study = load_table(results, name)
    style()
    from matplotlib import pyplot

    for abscissa in ABSCISSAE:
        for ordinate in ORDINATES:
            save(plot_pairs(study, abscissa, ordinate), out, f"{ordinate}_{abscissa}")
        save(plot_decisions(study, abscissa), out, f"decisions_{abscissa}")
        pyplot.close("all")
    print("\n".join([*study.left_out, f"Curves written to {out}."]))


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
