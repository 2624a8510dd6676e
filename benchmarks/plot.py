"""One figure of both benchmarks on a device: what a step costs beside its peer, what share of the limit epochs reach.

    python benchmarks/plot.py [--device cpu]

Reads step_cost-DEVICE.csv and training-DEVICE.csv from results/benchmarks/, writes figures/benchmarks/DEVICE.png
and .pdf.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from common import RESULTS, ROOT, parser
from matplotlib.axes import Axes
from study.looks import new_figure, save
from study.titles import BLUE, GREEN, GREY, VERMILLION

MODES = {
    "Acme": "all off",
    "Acme adam": "Adam",
    "Acme acme": "ACME",
    "Acme acme adam": "ACME + Adam",
    "Acme all four": "all four",
}
ASIDE = {"": -0.2, "compiled": 0.0, "captured": 0.2}  # where a step's ways lie about their mode's line
WAYS = {
    "": dict(label="as it is", color=VERMILLION, marker="s"),
    "compiled": dict(label="compile=True", color=BLUE, marker="o"),
    "captured": dict(label="captured by the caller", color=GREEN, marker="D"),
}
OPTIMIZERS = {"SGD": (GREY, "D"), "ACME": (BLUE, "o"), "all four": (VERMILLION, "s")}
WANTED = dict(color="black", marker="|", markersize=7, markeredgewidth=1.5, linestyle="")


def step_panel(axes: Axes, rows: pd.DataFrame) -> None:
    """The ratio to torch's optimizer of each mode, for one parameter set."""
    first, rows = rows.iloc[0], rows[rows.optimizer.str.startswith("Acme")]
    parts = rows.optimizer.str.partition(", ")
    places = parts[0].map(list(MODES).index) + parts[2].map(ASIDE)
    axes.plot(rows.target, places, label="wanted at most", **WANTED)
    for way, mine in rows.groupby(parts[2], sort=False):
        axes.plot(mine.ratio, places[mine.index], linestyle="", **WAYS[way])
    axes.set_xscale("log", base=2)
    axes.set_xticks([1 / 16, 0.25, 1, 4], ["1/16", "¼", "1", "4"])
    axes.set_yticks(range(len(MODES)), list(MODES.values()))
    axes.set(xlim=(min(0.2, 0.7 * rows.ratio.min()), 14), ylim=(len(MODES) - 0.5, -0.5))
    axes.set(title=f"{first.parameters} ({first.tensors} tensors)")
    axes.grid(axis="y", visible=False)


def training_panel(axes: Axes, epochs: pd.DataFrame) -> None:
    """The share of forward and backward alone that whole epochs reach."""
    ways = epochs.model + ", " + epochs.precision + np.where(epochs.compiled, ", compiled", "")
    axes.plot(np.where(epochs.model == "WRN-10-1", 80, 92), ways, label="wanted at least", **WANTED)
    for optimizer, mine in epochs.groupby("optimizer", sort=False):
        color, marker = OPTIMIZERS[optimizer]
        axes.plot(
            100 * mine.of_limit, ways[mine.index], color=color, marker=marker, linestyle="", label=optimizer
        )
    ends = min(50, 95 * epochs.of_limit.min()), max(105, 102 * epochs.of_limit.max())
    axes.set(xlim=ends, ylim=(ways.nunique() - 0.5, -0.5))
    axes.set_xlabel("images per second of whole epochs, in % of forward and backward alone")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(1.0, 0.0))


def main() -> None:
    name = parser(__doc__, device=True).parse_args().device
    steps, epochs = (pd.read_csv(RESULTS / f"{what}-{name}.csv") for what in ("step_cost", "training"))
    epochs = epochs[epochs.of_limit.notna()]
    about = json.loads((RESULTS / f"step_cost-{name}.json").read_text())
    figure = new_figure(height=4.6)
    top, bottom = figure.subfigures(2, height_ratios=(5, 2 + len(epochs) / 3))
    panels = top.subplots(1, 3, sharey=True)
    for axes, (_, rows) in zip(panels, steps.groupby("parameters", sort=False), strict=True):
        step_panel(axes, rows)
    panels[1].set_xlabel(
        "time of a step, in those of torch's SGD (all off, ACME) or AdamW (the others), foreach"
    )
    training_panel(bottom.subplots(), epochs)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.supxlabel(f"{about['device']}, torch {about['versions']['torch']}")
    folder = Path(os.environ.get("BENCHMARKS", ROOT / "figures" / "benchmarks"))
    save(figure, folder, name)
    print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
