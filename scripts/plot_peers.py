#!/usr/bin/env python3
"""ACME beside its peers: errors over six decades of scales, their price, and what a search for the scale gets.

Writes peers_robustness, peers_price and peers_budget, .pdf and .png, to OUT/STUDY.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from peer_study import Method, PeerStudy, load_peers, spread
from study import (
    BLACK,
    BLUE,
    BROWN,
    FULL_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    command_line,
    save,
    style,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAMILIES = ("SGD", "Adam")
WIDE = 2.4  # ACME's lines, which all others are compared with

LOOKS: dict[str, dict[str, Any]] = {
    "sgd-acme-averaged": {"color": BLUE, "marker": "o", "linewidth": WIDE, "markersize": 4, "zorder": 4},
    "adam-acme-averaged": {"color": BLUE, "marker": "o", "linewidth": WIDE, "markersize": 4, "zorder": 4},
    "sgd-acme-kept-averaged": {"color": BLUE, "marker": "D", "linewidth": WIDE, "markersize": 4, "zorder": 4},
    "adam-acme-kept-averaged": {
        "color": BLUE,
        "marker": "D",
        "linewidth": WIDE,
        "markersize": 4,
        "zorder": 4,
    },
    "sgd-acme-kept": {"color": BLACK, "marker": "D", "linestyle": ":", "linewidth": WIDE, "zorder": 3},
    "adam-acme-kept-unbiased": {
        "color": BLACK,
        "marker": "D",
        "linestyle": ":",
        "linewidth": WIDE,
        "zorder": 3,
    },
    "sgd-acme-rare": {"color": BLACK, "marker": "o", "linestyle": ":", "linewidth": WIDE, "zorder": 3},
    "adam-acme-unbiased": {"color": BLACK, "marker": "o", "linestyle": ":", "linewidth": WIDE, "zorder": 3},
    "sgd-acme": {"color": SKY, "marker": "o", "linestyle": "--", "linewidth": WIDE, "zorder": 3},
    "adam-acme": {"color": SKY, "marker": "o", "linestyle": "--", "linewidth": WIDE, "zorder": 3},
    "sgd": {"color": VERMILLION, "marker": "s", "linestyle": "-"},
    "adamw": {"color": VERMILLION, "marker": "s", "linestyle": "-"},
    "schedulefree-sgd": {"color": ORANGE, "marker": "^", "linestyle": "-"},
    "schedulefree-adamw": {"color": ORANGE, "marker": "^", "linestyle": "-"},
    "dog": {"color": GREEN, "marker": "D", "linestyle": "-."},
    "prodigy": {"color": GREEN, "marker": "D", "linestyle": "-."},
    "sam": {"color": PURPLE, "marker": "v", "linestyle": "--"},
    "dadapt-adam": {"color": PURPLE, "marker": "v", "linestyle": "--"},
    "asam": {"color": BROWN, "marker": "P", "linestyle": ":"},
}
"""Line styles; colours that colour-blind readers tell apart are used once in each family, but for ACME with a kept step
size and with rare look-aheads. Adam + ACME with either, without unbiased squares, is in the tables only."""


def shown(study: PeerStudy, family: str) -> list[Method]:
    return [method for method in study.methods if method.family == family and method.key in LOOKS]


def searched(study: PeerStudy, family: str) -> list[Method]:
    """Those of `shown` of which some seed has every scale."""
    return [method for method in shown(study, family) if study.searches(method.key)]


LEGEND_LINE = 0.155
"""Inches."""


def panels(
    methods: Sequence[list[Method]], rows: int, height: float, **shared: Any
) -> tuple[Figure, Any, Any]:
    """A figure, its panels, a column for each family, and the part below for the legends of the families' `methods`.

    Legends are wider than panels, which would shrink for them: hence a part of their own.
    """
    from matplotlib import pyplot

    lines = max(math.ceil(len(some) / 2) for some in methods) + 1.7
    figure = pyplot.figure(figsize=(FULL_WIDTH, height))
    above, below = figure.subfigures(2, 1, height_ratios=(height - lines * LEGEND_LINE, lines * LEGEND_LINE))
    return figure, above.subplots(rows, len(methods), squeeze=False, **shared), below


def legends(below: Any, methods: Sequence[list[Method]], extra: list[Any]) -> None:
    """One legend a family, under its column, and one line for what all panels share."""
    from matplotlib.lines import Line2D

    for center, some in zip((0.25, 0.75), methods, strict=True):
        handles = [Line2D([], [], label=method.title, **LOOKS[method.key]) for method in some]
        look = {"ncols": 2, "handlelength": 2.4, "columnspacing": 0.8, "borderaxespad": 0}
        below.legend(handles=handles, loc="upper center", bbox_to_anchor=(center, 1), **look)
    below.legend(handles=extra, loc="lower center", ncols=len(extra), borderaxespad=0.2)


def plain_ticks(axes: Axes) -> None:
    """A logarithmic axis of costs, with a few ticks in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:,.10g}"))
    axes.minorticks_off()


LOW_ERROR = 10.0
"""In %: where errors come below it, as on a task that is nearly solved, their axis is logarithmic."""


def error_ticks(axes: Axes, lowest: float) -> None:
    """The axis of errors, in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    if lowest < LOW_ERROR:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{error:g}"))
        axes.minorticks_off()


def chance(axes: Axes, study: PeerStudy) -> None:
    axes.axhline(study.chance, color=GREY, linestyle=":", linewidth=1, zorder=1)


def chance_handle(study: PeerStudy | None = None) -> Any:
    from matplotlib.lines import Line2D

    label = "chance" if study is None else f"chance ({study.chance:.3g} %)"
    return Line2D([], [], color=GREY, linestyle=":", label=label)


CROSSES = {"linestyle": "", "marker": "x", "markersize": 4}
"""Of scales from which some seed diverged."""


def draw_robustness(axes: Axes, study: PeerStudy, family: str) -> tuple[float, int]:
    """A family's last-epoch test errors over the scales: the lowest, and how many lines of crosses are above the panel."""
    chance(axes, study)
    lowest = study.chance
    lost: dict[str, list[float]] = {}
    for method in shown(study, family):
        look = LOOKS[method.key]
        groups = {scale: study.group(method.key, scale) for scale in study.scales}
        errors = {scale: list(group.errors.values()) for scale, group in groups.items() if group.finished}
        lowest = min([lowest, *(min(values) for values in errors.values())])
        means = np.array([statistics.fmean(values) for values in errors.values()])
        bars = [
            means - [min(values) for values in errors.values()],
            [max(values) for values in errors.values()] - means,
        ]
        axes.errorbar(
            list(errors), means, bars if len(study.seeds) > 1 else None, capsize=2, elinewidth=0.8, **look
        )
        if any(group.diverged for group in groups.values()):
            lost[look["color"]] = [scale for scale, group in groups.items() if group.diverged]
    for i, (color, scales) in enumerate(lost.items()):
        # Above the axis of errors, one line for each that diverged.
        above, height = axes.get_xaxis_transform(), [1.02 + 0.03 * i] * len(scales)
        axes.plot(scales, height, transform=above, clip_on=False, color=color, **CROSSES)
    return lowest, len(lost)


def robustness_axes(axes: Axes, study: PeerStudy, lowest: float, decades: int = 1) -> None:
    """The two axes of `draw_robustness`, with labels so many decades apart."""
    axes.set_xscale("log")
    named = [abs(math.remainder(math.log10(scale), decades)) < 1e-6 for scale in study.scales]
    axes.set_xticks(study.scales, [f"×{x:g}" * name for x, name in zip(study.scales, named, strict=True)])
    axes.minorticks_off()
    error_ticks(axes, lowest)
    bottom = 0.8 * lowest if lowest < LOW_ERROR else max(0, lowest - 0.08 * (100 - lowest))
    axes.set_ylim(bottom, 100)


def diverged_handle() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=GREY, label="diverged (some seed)", **CROSSES)


def plot_robustness(study: PeerStudy) -> Figure:
    """Last-epoch test error against the multiple of each method's default scale; crosses above the panel diverged."""
    methods = [shown(study, family) for family in FAMILIES]
    figure, [grid], below = panels(methods, 1, 4.0, sharex=True, sharey=True)
    drawn = [draw_robustness(axes, study, family) for axes, family in zip(grid, FAMILIES, strict=True)]
    lowest, most = min(low for low, _ in drawn), max(lines for _, lines in drawn)
    robustness_axes(grid[0], study, lowest)
    for axes, family in zip(grid, FAMILIES, strict=True):
        axes.set_xlabel("scale, in multiples of the method's default")
        axes.tick_params(axis="x", labelsize=6.5)
        axes.set_title(f"{family} and what builds on it", pad=6 + 5.5 * most)
    grid[0].set_ylabel("test error after the last epoch, %")
    legends(below, methods, extra=[chance_handle(study), *[diverged_handle()] * bool(most)])
    bars = "Mean over seeds, bars from the smallest to the largest. " if len(study.seeds) > 1 else ""
    title(figure, bars + study.whole_caption)
    return figure


def plot_price(study: PeerStudy) -> Figure:
    """Errors at what they cost: a run from the default scale, and the best of all scales with the search paid for."""
    from matplotlib.lines import Line2D

    methods = [shown(study, family) for family in FAMILIES]
    figure, grid, below = panels(methods, 2, 5.6, sharex="row", sharey=True)
    lowest = study.chance
    seconds = f"seconds of {'steps' if study.step_seconds else 'training'} in all"
    for row, (column, label) in zip(
        grid, (("evaluations", "gradient evaluations in all"), ("seconds", seconds)), strict=True
    ):
        for axes, some in zip(row, methods, strict=True):
            for method in some:
                look, cost = LOOKS[method.key], study.cost(method.key, column)
                untuned, tuned = (
                    study.default(method.key).mean_error(),
                    study.tuned(method.key)[0].mean_error(),
                )
                points = [(1, untuned, "white"), (len(study.scales), tuned, look["color"])]
                points = [point for point in points if point[1] is not None]
                if cost is None or not points:
                    continue
                line = {**look, "marker": "", "linewidth": 0.5 * look.get("linewidth", 1.2)}
                axes.plot([cost * runs for runs, _, _ in points], [error for _, error, _ in points], **line)
                lowest = min([lowest, *(error for _, error, _ in points)])
                for runs, error, face in points:
                    dot = {"color": look["color"], "marker": look["marker"], "zorder": 5}
                    axes.plot(cost * runs, error, **dot, markersize=5, markerfacecolor=face)
            axes.set_xlabel(label)
        plain_ticks(row[0])
        row[0].set_ylabel("test error after the last epoch, %")
    error_ticks(grid[0][0], lowest)
    for axes, family in zip(grid[0], FAMILIES, strict=True):
        axes.set_title(f"{family} and what builds on it")
    dots = {"color": GREY, "linestyle": "", "marker": "o", "markersize": 5}
    extra = [
        Line2D([], [], **dots, markerfacecolor="white", label="one run, from the default scale"),
        Line2D([], [], **dots, label=f"best by validation of {len(study.scales)} scales, all runs paid for"),
    ]
    legends(below, methods, extra)
    title(figure, ("Mean over seeds. " if len(study.seeds) > 1 else "") + study.whole_caption)
    return figure


def plot_budget(study: PeerStudy) -> Figure:
    """Test error of a search for the scale against the evaluations it may take in all."""
    methods = [searched(study, family) for family in FAMILIES]
    figure, grid, below = panels(methods, 2, 5.6, sharex=True, sharey="row")
    lowest, complete = study.chance, []
    for row, outwards, order in zip(
        grid, (False, True), ("scales in random order", "from the default outwards"), strict=True
    ):
        for axes, family, some in zip(row, FAMILIES, methods, strict=True):
            if not outwards:
                chance(axes, study)
            for method in some:
                look, cost = LOOKS[method.key], study.cost(method.key)
                if cost is None:
                    continue
                draws = range(1, len(study.scales) + 1)
                found = [study.budget(method.key, count, outwards) for count in draws]
                x, means = [cost * count for count in draws], [spread(values)[0] for values in found]
                lowest = min([lowest, *means])
                complete.append(len(found[0]))
                axes.plot(x, means, **look)
            axes.set_title(f"{family}: {order}")
        row[0].set_ylabel("test error, %")
    plain_ticks(grid[0][0])
    for row in grid:
        error_ticks(row[0], lowest)
    for axes in grid[1]:
        axes.set_xlabel("gradient evaluations in all, search included")
    legends(below, methods, [chance_handle(study)])
    mean = "Mean over seeds. " if len(study.seeds) > 1 else ""
    if complete and min(complete) < len(study.seeds):
        fewest, most = min(complete), max(complete)
        count = f"{most}" if fewest == most else f"{fewest} to {most}"
        mean = f"Mean over the seeds that have every scale, {count} of {len(study.seeds)}. "
    title(figure, mean + study.whole_caption)
    return figure


def work(results: Path, name: str, out: Path) -> None:
    study = load_peers(results, name)
    style()
    from matplotlib import pyplot

    save(plot_robustness(study), out, "peers_robustness")
    save(plot_price(study), out, "peers_price")
    save(plot_budget(study), out, "peers_budget")
    pyplot.close("all")
    print("\n".join([*study.missing(), *study.left_out, f"Peers written to {out}."]))


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
