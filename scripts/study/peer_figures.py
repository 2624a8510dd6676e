"""ACME beside its peers: errors over the scales, and what a search for the scale gets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from study.beside_peers import Peers
from study.looks import CROSSES, describe, draw_errors, grey, new_figure
from study.runs import mean
from study.titles import GREY, about, rank, title

FAMILIES = ("SGD", "Adam")
LEGEND_LINE = 0.155  # inches
LOST = "diverged (some seed)"
LOW_ERROR = 10.0
"""In %: where errors come below it, as on a task that is nearly solved, their axis is logarithmic."""


def figures(study: Peers) -> Iterator[tuple[str, Figure]]:
    yield "peers_robustness", plot_robustness(study)
    yield "peers_budget", plot_budget(study)


def look_of(key: str) -> dict[str, Any]:
    """ACME's lines, which all others are compared with, are wide and above them."""
    one = about(key)
    look = {"color": one.color, "marker": one.marker, "linestyle": one.line}
    if "acme" in key:
        look |= {"linewidth": 2.4, "zorder": 3} | ({"markersize": 4, "zorder": 4} if one.line == "-" else {})
    return look


def drawn(studies: Iterable[Peers], family: str) -> list[str]:
    """The keys that have a look, of the whole trainings."""
    keys = {key for study in studies for key in study.whole if study.family(key) == family}
    return sorted((key for key in keys if about(key).color), key=rank)


def handles_of(keys: list[str]) -> list[Line2D]:
    return [Line2D([], [], label=title(key), **look_of(key)) for key in keys]


def chance_handle(study: Peers | None = None) -> Line2D:
    return grey("chance" if study is None else f"chance ({study.chance:.3g} %)", linestyle=":")


def panels(keys: Sequence[list[str]], rows: int, height: float, extra: list[Line2D], **shared: Any) -> Any:
    """A figure and its panels, a column for each family, with one legend a family under its column, of its `keys`, and
    one line for what all share. Legends are wider than panels, which would shrink for them: hence a part of their own.
    """
    lines = max(math.ceil(len(some) / 2) for some in keys) + 1.7
    figure = new_figure(height)
    above, below = figure.subfigures(2, 1, height_ratios=(height - lines * LEGEND_LINE, lines * LEGEND_LINE))
    look = {"ncols": 2, "handlelength": 2.4, "columnspacing": 0.8, "borderaxespad": 0}
    for center, some in zip((0.25, 0.75), keys, strict=True):
        below.legend(handles=handles_of(some), loc="upper center", bbox_to_anchor=(center, 1), **look)
    below.legend(handles=extra, loc="lower center", ncols=len(extra), borderaxespad=0.2)
    return figure, above.subplots(rows, len(keys), squeeze=False, **shared)


def cost_axis(axes: Axes) -> None:
    """A logarithmic axis, with a few ticks in plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:,.10g}"))
    axes.minorticks_off()


def error_axis(axes: Axes, lowest: float) -> None:
    """In plain numbers."""
    if lowest < LOW_ERROR:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{error:g}"))
        axes.minorticks_off()


def draw_chance(axes: Axes, study: Peers) -> None:
    axes.axhline(study.chance, color=GREY, linestyle=":", linewidth=1, zorder=1)


def draw_robustness(axes: Axes, study: Peers, family: str) -> tuple[float, int]:
    """A family's last-epoch test errors over the scales: the lowest, and how many lines of crosses are above the panel."""
    draw_chance(axes, study)
    lowest, lines = study.chance, 0
    for key in drawn([study], family):
        look, groups = look_of(key), study.groups[key]
        errors = {x: list(group.errors.values()) for x, group in sorted(groups.items()) if group.finished}
        lowest = min([lowest, *(min(values) for values in errors.values())])
        draw_errors(axes, errors, len(study.seeds) > 1, elinewidth=0.8, **look)
        lost = [scale for scale, group in groups.items() if group.diverged]
        if lost:  # above the axis of errors, one line for each that diverged
            place, height = axes.get_xaxis_transform(), [1.02 + 0.03 * lines] * len(lost)
            axes.plot(lost, height, transform=place, clip_on=False, color=look["color"], **CROSSES)
            lines += 1
    return lowest, lines


def robustness_axes(axes: Axes, study: Peers, lowest: float, decades: int = 1) -> None:
    """The two axes of `draw_robustness`, with labels so many decades apart."""
    axes.set_xscale("log")
    named = [abs(math.remainder(math.log10(scale), decades)) < 1e-6 for scale in study.scales]
    axes.set_xticks(study.scales, [f"×{x:g}" * name for x, name in zip(study.scales, named, strict=True)])
    axes.minorticks_off()
    error_axis(axes, lowest)
    bottom = 0.8 * lowest if lowest < LOW_ERROR else max(0, lowest - 0.08 * (100 - lowest))
    axes.set_ylim(bottom, 100)


def plot_robustness(study: Peers) -> Figure:
    """Last-epoch test error against the multiple of each method's default scale; crosses above the panel diverged."""
    keys = [drawn([study], family) for family in FAMILIES]
    lost = any(group.diverged for some in keys for key in some for group in study.groups[key].values())
    extra = [chance_handle(study), *[grey(LOST, **CROSSES)] * lost]
    figure, [grid] = panels(keys, 1, 4.0, extra, sharex=True, sharey=True)
    found = [draw_robustness(axes, study, family) for axes, family in zip(grid, FAMILIES, strict=True)]
    robustness_axes(grid[0], study, min(low for low, _ in found))
    for axes, family in zip(grid, FAMILIES, strict=True):
        axes.set_xlabel("scale, in multiples of the method's default")
        axes.tick_params(axis="x", labelsize=6.5)
        axes.set_title(f"{family} and what builds on it", pad=6 + 5.5 * max(lines for _, lines in found))
    grid[0].set_ylabel("test error after the last epoch, %")
    describe(figure, study.whole_runs, "Mean over seeds, bars from the smallest to the largest. ")
    return figure


def plot_budget(study: Peers) -> Figure:
    """Test error of a search for the scale against the evaluations it may take in all."""
    keys = [[key for key in drawn([study], family) if study.searches(key)] for family in FAMILIES]
    figure, grid = panels(keys, 2, 5.6, [chance_handle(study)], sharex=True, sharey="row")
    draws = range(1, len(study.scales) + 1)
    for row, outwards in zip(grid, (False, True), strict=True):
        lowest = study.chance
        for axes, family, some in zip(row, FAMILIES, keys, strict=True):
            if not outwards:
                draw_chance(axes, study)
            for key in some:
                means = [mean(study.budget(key, count, outwards)) for count in draws]
                lowest = min(lowest, *means)
                axes.plot([study.cost(key) * count for count in draws], means, **look_of(key))
            axes.set_title(f"{family}: {'from the default outwards' * outwards or 'scales in random order'}")
            axes.set_xlabel("gradient evaluations in all, search included" * outwards)
        row[0].set_ylabel("test error, %")
        error_axis(row[0], lowest)
    cost_axis(grid[0][0])
    fewest = min((len(study.searches(key)) for some in keys for key in some), default=len(study.seeds))
    some = f" that have every scale, at least {fewest} of {len(study.seeds)}" * (fewest < len(study.seeds))
    describe(figure, study.whole_runs, f"Mean over {'the ' * bool(some)}seeds{some}. ")
    return figure


def plot_overview(studies: Mapping[str, Peers]) -> Figure:
    """The robustness of each study: a row for each family, a column for each study."""
    figure = new_figure(6.0)
    rows = figure.subfigures(len(FAMILIES), 1)
    grids = [row.subplots(1, len(studies), squeeze=False)[0] for row in rows]
    found = [
        [draw_robustness(axes, study, family) for axes, study in zip(grid, studies.values(), strict=True)]
        for grid, family in zip(grids, FAMILIES, strict=True)
    ]
    lowest = [min(low for low, _ in column) for column in zip(*found, strict=True)]
    for row, grid, family, drawings in zip(rows, grids, FAMILIES, found, strict=True):
        for axes, (task, study), low in zip(grid, studies.items(), lowest, strict=True):
            robustness_axes(axes, study, low, decades=3)
            model = study.runs[0].config.model
            axes.set_title(f"{task} ({model})", pad=6 + 5 * max(lines for _, lines in drawings))
        grid[0].set_ylabel(f"{family} and what builds on it:\ntest error after the last epoch, %")
        grid[len(studies) // 2].set_xlabel("scale, in multiples of the method's default")
        handles = handles_of(drawn(studies.values(), family))
        handles += [chance_handle(), grey(LOST, **CROSSES)] * (family == FAMILIES[-1])
        row.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=2.6, columnspacing=1.5)
    return figure
