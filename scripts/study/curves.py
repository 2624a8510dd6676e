"""Curves of the table's runs: test error, training loss, step size and shares of the decision codes, one panel a pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from icassp25.runlog import SHARES, Run
from study.looks import CROSSES, PAIR_STYLE, caption, new_figure
from study.runs import Group, runs_of
from study.titles import BLACK, BLUE, GREEN, GREY, ORANGE, PAIRS, PURPLE, SKY, VERMILLION, YELLOW, title
from study.words import caption as words_of

ABSCISSAE = {"epoch": "epoch", "evaluations": "gradient evaluations", "seconds": "seconds of training"}
ORDINATES = {"test_error": "test error, %", "train_loss": "training loss", "step_size": "step size"}
DECISIONS = {
    "0 unclear": GREY,
    "1 cubic": BLUE,
    "2 cubic, look-ahead worse": SKY,
    "3 parabola at the end": GREEN,
    "4 parabola at the start": YELLOW,
    "5 extrapolated up": ORANGE,
    "6 extrapolated down": VERMILLION,
    "7 other": PURPLE,
    "non-finite": BLACK,
}
"""Colours of the decision codes, in the order of the CSV's shares."""


def figures(groups: list[Group]) -> Iterator[tuple[str, Figure]]:
    """Each figure by its name."""
    for abscissa in ABSCISSAE:
        for ordinate in ORDINATES:
            yield f"{ordinate}_{abscissa}", plot_pairs(groups, abscissa, ordinate)
        yield f"decisions_{abscissa}", plot_decisions(groups, abscissa)


def values(run: Run, column: str) -> np.ndarray:
    return (100 if column.endswith("_error") else 1) * run.frame[column].to_numpy(dtype=float)


def seeds_of(groups: list[Group]) -> set[int]:
    return {run.config.seed for run in runs_of(groups)}


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
        axes.plot(x[-1:], y[-1:], color=look["color"], clip_on=False, **CROSSES)


def panels(groups: list[Group], abscissa: str, acme: dict[str, str]) -> tuple[Figure, list[tuple[Axes, dict[str, Group]]]]:  # fmt: skip
    """One panel a pair, on the same axes, with its groups by the words of `acme`, the ends of their keys; a panel's title
    counts the runs that diverged or lack."""
    figure = new_figure(3.9)
    grid = figure.subplots(2, 4, sharex=True, sharey=True)
    found = {group.key: group for group in groups}
    filled = []
    for axes, key in zip(grid.flat, PAIRS, strict=True):
        some = {words: found.get(key + end, Group()) for words, end in acme.items()}
        lines = [title(key)]
        for words, group in some.items():
            side, seeds = words.removesuffix(" ACME"), len(group.seeds)
            if group.diverged:
                lines.append(f"{side}: {len(group.diverged)} of {seeds} diverged")
            if 0 < seeds < len(seeds_of(groups)):
                lines.append(f"{side}: {seeds} of {len(seeds_of(groups))} seeds")
        axes.set_title("\n".join(lines))
        filled.append((axes, some))
    for axes in grid[-1]:
        axes.set_xlabel(ABSCISSAE[abscissa])
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(5, integer=abscissa != "seconds"))
    return figure, filled


def plot_pairs(groups: list[Group], abscissa: str, ordinate: str) -> Figure:
    """Each base optimizer with and without ACME."""
    figure, filled = panels(groups, abscissa, dict(zip(PAIR_STYLE, ("", "-acme"), strict=True)))
    for axes, some in filled:
        for words, group in some.items():
            draw_group(axes, group, abscissa, ordinate, PAIR_STYLE[words])
    if ordinate == "step_size":
        axes.set_yscale("log")
    if abscissa != "epoch":
        axes.set_xlim(left=0)
    figure.supylabel(ORDINATES[ordinate])
    handles = [Line2D([], [], label=words, **look) for words, look in PAIR_STYLE.items()]
    several = len(seeds_of(groups)) > 1
    if several:
        handles.append(Patch(color=GREY, alpha=0.4, linewidth=0, label="smallest to largest over seeds"))
    if any(group.diverged for group in groups):
        handles.append(Line2D([], [], color=GREY, label="diverged", **CROSSES))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    caption(figure, "Mean over seeds. " * several + words_of(runs_of(groups)))
    return figure


def plot_decisions(groups: list[Group], abscissa: str) -> Figure:
    """Shares of the decision codes among each epoch's steps, with ACME; the mean over seeds."""
    figure, filled = panels(groups, abscissa, {"with ACME": "-acme"})
    for axes, some in filled:
        axes.grid(False)
        runs = some["with ACME"].finished
        if not runs:
            continue
        edges = np.concatenate([[0], np.mean([values(run, abscissa) for run in runs], axis=0)])
        base = np.zeros(len(edges) - 1)
        for column, color in zip(SHARES, DECISIONS.values(), strict=True):
            top = base + 100 * np.mean([values(run, column) for run in runs], axis=0)
            axes.stairs(top, edges, baseline=base, fill=True, color=color, linewidth=0)
            base = top
    first = filled[0][0]
    first.set_ylim(0, 100)
    first.margins(x=0)
    figure.supylabel("share of the steps of an epoch, %")
    handles = [Patch(color=color, label=name, linewidth=0) for name, color in DECISIONS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    several = ", mean over seeds" * (len(seeds_of(groups)) > 1)
    caption(figure, f"With ACME{several}. {words_of(runs_of(groups))}")
    return figure
