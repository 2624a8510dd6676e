"""Figures of pairs: curves of the table's runs, one panel a pair; and what the initial step size matters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from icassp25.runlog import SHARES, Run
from study.looks import CROSSES, PAIR_STYLE, describe, draw_errors, grey, new_figure, pair_handles
from study.runs import Group, by_key, chance_of, runs_of
from study.tables import SIDES, STARTS
from study.titles import BLACK, BLUE, GREEN, GREY, ORANGE, PAIRS, PURPLE, SKY, VERMILLION, YELLOW, title
from study.words import seeds_of

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


def curves(groups: list[Group]) -> Iterator[tuple[str, Figure]]:
    """Each figure of the table's runs by its name."""
    for abscissa in ABSCISSAE:
        for ordinate in ORDINATES:
            yield f"{ordinate}_{abscissa}", plot_pairs(groups, abscissa, ordinate)
        yield f"decisions_{abscissa}", plot_decisions(groups, abscissa)


def starts(groups: list[Group]) -> Iterator[tuple[str, Figure]]:
    """Each figure of the runs from several initial step sizes by its name."""
    yield "robustness_error", plot_errors(groups)
    yield "robustness_step_size", plot_step_sizes(groups)


def values(runs: list[Run], column: str, initial: bool = False) -> np.ndarray:
    """A column of each run; `initial`: with its value at the start of the training, which is the learning rate, or 0."""
    scale = 100 if column.endswith("_error") else 1
    found = np.array([scale * run.frame[column].to_numpy(dtype=float) for run in runs])
    first = [[run.config.lr if column == "step_size" else 0.0] for run in runs]
    return np.hstack([first, found]) if initial else found


def draw_group(
    axes: Axes, group: Group, abscissa: str, ordinate: str, look: dict[str, Any], initial: bool = False
) -> None:
    """The mean over the seeds with a band from the smallest to the largest; diverged runs end in a cross."""
    if group.finished:
        x, y = (values(group.finished, column, initial) for column in (abscissa, ordinate))
        axes.plot(x.mean(axis=0), y.mean(axis=0), markevery=max(1, x.shape[1] // 6), **look)
        if len(y) > 1:
            band = y.min(axis=0), y.max(axis=0)
            axes.fill_between(x.mean(axis=0), *band, color=look["color"], alpha=0.25, linewidth=0)
    for run in group.diverged:
        x, y = (values([run], column, initial)[0] for column in (abscissa, ordinate))
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        axes.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=0.6)
        axes.plot(x[-1:], y[-1:], color=look["color"], clip_on=False, **CROSSES)


def panels(
    groups: list[Group], abscissa: str, ends: dict[str, str]
) -> tuple[Figure, list[tuple[Axes, dict[str, Group]]]]:
    """One panel a pair, on the same axes, with its groups, by what they are called and how their keys end; a panel's title
    counts the runs that diverged or lack."""
    figure = new_figure(3.9)
    grid = figure.subplots(2, 4, sharex=True, sharey=True)
    found, whole = {group.key: group for group in groups}, len(seeds_of(runs_of(groups)))
    filled = []
    for axes, key in zip(grid.flat, PAIRS, strict=True):
        some = {words: found.get(key + end, Group()) for words, end in ends.items()}
        lines = [title(key)]
        for words, group in some.items():
            side, seeds = words.removesuffix(" ACME"), len(group.seeds)
            lines += [f"{side}: {len(group.diverged)} of {seeds} diverged"] * bool(group.diverged)
            lines += [f"{side}: {seeds} of {whole} seeds"] * (0 < seeds < whole)
        axes.set_title("\n".join(lines))
        filled.append((axes, some))
    for axes in grid[-1]:
        axes.set_xlabel(ABSCISSAE[abscissa])
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(5, integer=abscissa != "seconds"))
    return figure, filled


def plot_pairs(groups: list[Group], abscissa: str, ordinate: str) -> Figure:
    """Each base optimizer with and without ACME."""
    figure, filled = panels(groups, abscissa, dict(zip(PAIR_STYLE, SIDES.values(), strict=True)))
    for axes, some in filled:
        for words, group in some.items():
            draw_group(axes, group, abscissa, ordinate, PAIR_STYLE[words])
    if ordinate == "step_size":
        axes.set_yscale("log")
    if abscissa != "epoch":
        axes.set_xlim(left=0)
    figure.supylabel(ORDINATES[ordinate])
    handles = pair_handles()
    if len(seeds_of(runs_of(groups))) > 1:
        handles.append(Patch(color=GREY, alpha=0.4, linewidth=0, label="smallest to largest over seeds"))
    if any(group.diverged for group in groups):
        handles.append(grey("diverged", **CROSSES))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    describe(figure, runs_of(groups), "Mean over seeds. ")
    return figure


def plot_decisions(groups: list[Group], abscissa: str) -> Figure:
    """Shares of the decision codes among each epoch's steps, with ACME; the mean over seeds."""
    figure, filled = panels(groups, abscissa, {"with ACME": "-acme"})
    for axes, some in filled:
        axes.grid(False)
        runs = some["with ACME"].finished
        if not runs:
            continue
        edges = np.concatenate([[0], values(runs, abscissa).mean(axis=0)])
        base = np.zeros(len(edges) - 1)
        for column, color in zip(SHARES, DECISIONS.values(), strict=True):
            top = base + 100 * values(runs, column).mean(axis=0)
            axes.stairs(top, edges, baseline=base, fill=True, color=color, linewidth=0)
            base = top
    first, _ = filled[0]
    first.set_ylim(0, 100)
    first.margins(x=0)
    figure.supylabel("share of the steps of an epoch, %")
    handles = [Patch(color=color, label=name, linewidth=0) for name, color in DECISIONS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    describe(figure, runs_of(groups), "Mean over seeds. ", before="With ACME. ")
    return figure


def plot_errors(groups: list[Group]) -> Figure:
    """Last-epoch test error against the initial step size; diverged runs are crosses above 100 %."""
    figure = new_figure(2.7)
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    runs = runs_of(groups)
    chance, several, lost = chance_of(runs[0]), len(seeds_of(runs)) > 1, any(run.diverged for run in runs)
    for axes, key in zip(grid, STARTS, strict=True):
        axes.axhline(chance, color=GREY, linestyle=":", linewidth=1)
        for height, end, look in zip((104, 108), SIDES.values(), PAIR_STYLE.values(), strict=True):
            some = by_key(groups).get(key + end, [])
            errors = {group.config.lr: list(group.errors.values()) for group in some if group.finished}
            draw_errors(axes, errors, several, **look)
            crosses = [group.config.lr for group in some if group.diverged]
            axes.plot(crosses, [height] * len(crosses), color=look["color"], **CROSSES)
        axes.set_title(title(key))
        axes.set_xlabel("initial step size")
    axes.set_xscale("log")
    axes.minorticks_off()
    lowest = min((error for group in groups for error in group.errors.values()), default=chance)
    axes.set_ylim(max(0, lowest - 0.1 * (100 - lowest)), 111 if lost else 100)
    axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= 100])
    figure.supylabel("test error after the last epoch, %")
    handles = [*pair_handles(), grey(f"chance ({chance:.3g} %)", linestyle=":")]
    if several:
        bars = {"linestyle": "", "marker": "|", "markersize": 8, "markeredgewidth": 1.2}
        handles.append(grey("smallest to largest over seeds", **bars))
    if lost:
        handles.append(grey("diverged (some seed)", **CROSSES))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    describe(figure, runs, "Mean over seeds, bars from the smallest to the largest. ")
    return figure


def plot_step_sizes(groups: list[Group]) -> Figure:
    """The step size over the steps, with ACME, from each initial step size (at step 0)."""
    figure = new_figure(2.7)
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    lrs = sorted({group.config.lr for group in groups})
    # Ordered colours for ordered starts, legible on white and for colour-blind readers.
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(lrs)))
    markers, lines = "osD^vPX<>*" * 9, ("-", "--", "-.", ":") * 25
    looks = {
        lr: {"color": color, "marker": marker, "linestyle": line}
        for lr, color, marker, line in zip(lrs, colors, markers, lines, strict=False)
    }
    found = by_key(groups)
    for axes, key in zip(grid, STARTS, strict=True):
        for group in found.get(f"{key}-acme", []):
            draw_group(axes, group, "steps", "step_size", looks[group.config.lr], initial=True)
        axes.set_title(title(f"{key}-acme"))
        axes.set_xlabel("optimizer steps")
    axes.set_yscale("log")
    axes.minorticks_off()
    figure.supylabel("step size")
    handles = [Line2D([], [], label=f"{lr:g}", **look) for lr, look in looks.items()]
    handles += [grey("diverged", **CROSSES)] * any(group.diverged for group in groups if group.config.acme)
    figure.legend(handles=handles, loc="outside right center", title="initial\nstep size")
    describe(figure, runs_of(groups), "Mean over seeds, bands from the smallest to the largest. ")
    return figure
