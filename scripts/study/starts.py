"""How much the initial step size matters: last-epoch errors from each, and where ACME takes it."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icassp25.runlog import Run
from study.looks import CROSSES, PAIR_STYLE, caption, draw_errors, new_figure
from study.runs import Group, by_key, chance_of, runs_of
from study.tables import STARTS
from study.titles import GREY, title
from study.words import caption as words_of


def figures(groups: list[Group]) -> Iterator[tuple[str, Figure]]:
    yield "robustness_error", plot_errors(groups)
    yield "robustness_step_size", plot_step_sizes(groups)


def plot_errors(groups: list[Group]) -> Figure:
    """Last-epoch test error against the initial step size; diverged runs are crosses above 100 %."""
    figure = new_figure(2.7)
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    runs, found = runs_of(groups), by_key(groups)
    chance = chance_of(runs[0])
    several, diverged = len({run.config.seed for run in runs}) > 1, any(run.diverged for run in runs)
    for axes, key in zip(grid, STARTS, strict=True):
        axes.axhline(chance, color=GREY, linestyle=":", linewidth=1)
        for height, end, look in zip((104, 108), ("", "-acme"), PAIR_STYLE.values(), strict=True):
            some = found.get(key + end, [])
            errors = {group.config.lr: list(group.errors.values()) for group in some if group.finished}
            draw_errors(axes, errors, several, **look)
            lost = [group.config.lr for group in some if group.diverged]
            axes.plot(lost, [height] * len(lost), color=look["color"], **CROSSES)
        axes.set_title(title(key))
        axes.set_xlabel("initial step size")
    axes.set_xscale("log")
    axes.minorticks_off()
    lowest = min((error for group in groups for error in group.errors.values()), default=chance)
    axes.set_ylim(max(0, lowest - 0.1 * (100 - lowest)), 111 if diverged else 100)
    axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= 100])
    figure.supylabel("test error after the last epoch, %")
    handles = [Line2D([], [], label=words, **look) for words, look in PAIR_STYLE.items()]
    handles.append(Line2D([], [], color=GREY, linestyle=":", label=f"chance ({chance:.3g} %)"))
    if several:
        bars = {"color": GREY, "linestyle": "", "marker": "|", "markersize": 8, "markeredgewidth": 1.2}
        handles.append(Line2D([], [], **bars, label="smallest to largest over seeds"))
    if diverged:
        handles.append(Line2D([], [], color=GREY, label="diverged (some seed)", **CROSSES))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    caption(figure, "Mean over seeds, bars from the smallest to the largest. " * several + words_of(runs))
    return figure


def trajectory(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and step sizes from the initial one at step 0 on, as far as they are finite."""
    steps = np.array([0, *run.frame["steps"]], dtype=float)
    sizes = np.array([run.config.lr, *run.frame["step_size"]])
    return steps[np.isfinite(sizes)], sizes[np.isfinite(sizes)]


def plot_step_sizes(groups: list[Group]) -> Figure:
    """The step size over the steps, with ACME, from each initial step size (at step 0)."""
    figure = new_figure(2.7)
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    lrs = sorted({group.config.lr for group in groups})
    # Ordered colours for ordered starts, legible on white and for colour-blind readers.
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(lrs)))
    looks = {
        lr: {"color": color, "marker": marker, "linestyle": line}
        for lr, color, marker, line in zip(
            lrs, colors, "osD^vPX<>*" * 9, ("-", "--", "-.", ":") * 25, strict=False
        )
    }
    found = by_key(groups)
    for axes, key in zip(grid, STARTS, strict=True):
        for group in found.get(f"{key}-acme", []):
            look = looks[group.config.lr]
            if group.finished:
                steps, _ = trajectory(group.finished[0])
                sizes = np.array([trajectory(run)[1] for run in group.finished])
                axes.plot(steps, sizes.mean(axis=0), markevery=max(1, len(steps) // 6), **look)
                if len(sizes) > 1:
                    low, high = sizes.min(axis=0), sizes.max(axis=0)
                    axes.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)
            for run in group.diverged:
                steps, sizes = trajectory(run)
                axes.plot(steps, sizes, color=look["color"], linestyle=look["linestyle"], linewidth=0.6)
                axes.plot(steps[-1:], sizes[-1:], color=look["color"], **CROSSES)
        axes.set_title(title(f"{key}-acme"))
        axes.set_xlabel("optimizer steps")
    axes.set_yscale("log")
    axes.minorticks_off()
    figure.supylabel("step size")
    handles = [Line2D([], [], label=f"{lr:g}", **look) for lr, look in looks.items()]
    if any(group.diverged for key in STARTS for group in found.get(f"{key}-acme", [])):
        handles.append(Line2D([], [], color=GREY, label="diverged", **CROSSES))
    figure.legend(handles=handles, loc="outside right center", title="initial\nstep size")
    runs = runs_of(groups)
    several = len({run.config.seed for run in runs}) > 1
    caption(figure, "Mean over seeds, bands from the smallest to the largest. " * several + words_of(runs))
    return figure
