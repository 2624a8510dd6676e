#!/usr/bin/env python3
"""How much the initial step size matters: last-epoch errors from each, and where ACME takes it.

Writes robustness_error and robustness_step_size, .pdf and .png, to OUT/STUDY.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from study import (
    FULL_WIDTH,
    GREY,
    LR_PAIRS,
    PAIR_STYLE,
    Study,
    command_line,
    load_lr,
    save,
    style,
    title,
)

from icassp25.runlog import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_errors(study: Study) -> Figure:
    """Last-epoch test error against the initial step size; diverged runs are crosses above 100 %."""
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figure, grid = pyplot.subplots(1, 2, figsize=(FULL_WIDTH, 2.7), sharex=True, sharey=True)
    for axes, pair in zip(grid, LR_PAIRS, strict=True):
        axes.axhline(study.chance, color=GREY, linestyle=":", linewidth=1)
        for height, optimizer, look in zip((104, 108), pair, PAIR_STYLE, strict=True):
            groups = {lr: study.group(optimizer, lr) for lr in study.lrs}
            errors = {lr: list(group.errors.values()) for lr, group in groups.items() if group.finished}
            means = np.array([np.mean(values) for values in errors.values()])
            spread = [
                means - [min(values) for values in errors.values()],
                [max(values) for values in errors.values()] - means,
            ]
            axes.errorbar(list(errors), means, spread if len(study.seeds) > 1 else None, capsize=2, **look)
            lost = [lr for lr, group in groups.items() if group.diverged]
            axes.plot(lost, [height] * len(lost), color=look["color"], linestyle="", marker="x", markersize=5)
        axes.set_title(pair[0].base_name)
        axes.set_xlabel("initial step size")
    axes = grid[0]
    axes.set_xscale("log")
    axes.minorticks_off()
    lowest = min(min(group.errors.values(), default=study.chance) for group in study.groups.values())
    diverged = any(group.diverged for group in study.groups.values())
    axes.set_ylim(max(0, lowest - 0.1 * (100 - lowest)), 111 if diverged else 100)
    axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= 100])
    figure.supylabel("test error after the last epoch, %")
    handles = [
        Line2D([], [], label=label, **look)
        for label, look in zip(("without ACME", "with ACME"), PAIR_STYLE, strict=True)
    ]
    handles.append(Line2D([], [], color=GREY, linestyle=":", label=f"chance ({study.chance:.3g} %)"))
    if len(study.seeds) > 1:
        bars = {"color": GREY, "linestyle": "", "marker": "|", "markersize": 8, "markeredgewidth": 1.2}
        handles.append(Line2D([], [], **bars, label="smallest to largest over seeds"))
    if diverged:
        crosses = {"color": GREY, "linestyle": "", "marker": "x", "markersize": 5}
        handles.append(Line2D([], [], **crosses, label="diverged (some seed)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    spread_words = "Mean over seeds, bars from the smallest to the largest. " if len(study.seeds) > 1 else ""
    title(figure, spread_words + study.caption)
    return figure


def trajectory(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and step sizes from the initial one at step 0 on, as far as they are finite."""
    steps = np.array([0, *run.frame["steps"]], dtype=float)
    sizes = np.array([run.config.lr, *run.frame["step_size"]])
    return steps[np.isfinite(sizes)], sizes[np.isfinite(sizes)]


def plot_step_sizes(study: Study) -> Figure:
    """The step size over the steps, with ACME, from each initial step size (at step 0)."""
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    # Ordered colours for ordered starts, legible on white and for colour-blind readers.
    colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(study.lrs)))
    looks = [
        {"color": color, "marker": marker, "linestyle": line}
        for color, marker, line in zip(colors, "osD^vPX<>*" * 9, ("-", "--", "-.", ":") * 25, strict=False)
    ]
    figure, grid = pyplot.subplots(1, 2, figsize=(FULL_WIDTH, 2.7), sharex=True, sharey=True)
    for axes, (_, optimizer) in zip(grid, LR_PAIRS, strict=True):
        for lr, look in zip(study.lrs, looks, strict=False):
            group = study.group(optimizer, lr)
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
                axes.plot(steps[-1:], sizes[-1:], color=look["color"], marker="x", markersize=5)
        axes.set_title(optimizer.name)
        axes.set_xlabel("optimizer steps")
    grid[0].set_yscale("log")
    grid[0].minorticks_off()
    figure.supylabel("step size")
    handles = [Line2D([], [], label=f"{lr:g}", **look) for lr, look in zip(study.lrs, looks, strict=False)]
    if any(study.group(optimizer, lr).diverged for _, optimizer in LR_PAIRS for lr in study.lrs):
        handles.append(Line2D([], [], color=GREY, linestyle="", marker="x", markersize=5, label="diverged"))
    figure.legend(handles=handles, loc="outside right center", title="initial\nstep size")
    spread_words = "Mean over seeds, bands from the smallest to the largest. " if len(study.seeds) > 1 else ""
    title(figure, spread_words + study.caption)
    return figure


def work(results: Path, name: str, out: Path) -> None:
    study = load_lr(results, name)
    style()
    from matplotlib import pyplot

    save(plot_errors(study), out, "robustness_error")
    save(plot_step_sizes(study), out, "robustness_step_size")
    pyplot.close("all")
    print("\n".join([*study.left_out, f"Robustness written to {out}."]))


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
