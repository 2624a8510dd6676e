"""One figure of both benchmarks on a device: what a step costs beside its peer, what share of the limit epochs reach.

    python benchmarks/plot.py [--device cuda]

Reads step_cost-DEVICE.csv and training-DEVICE.csv from results/benchmarks/, writes figures/benchmarks/DEVICE.png
and .pdf.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from common import RESULTS, ROOT, parser
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, GREEN, VERMILLION, GREY = "#0072B2", "#009E73", "#D55E00", "#999999"  # Okabe and Ito's; grey
STYLE = {
    "font.size": 7, "axes.titlesize": 7.5, "lines.markersize": 3, "legend.frameon": False, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#dddddd", "savefig.dpi": 200,
}  # fmt: skip

MODES = {
    "Acme": "all off",
    "Acme adam": "Adam",
    "Acme acme": "ACME",
    "Acme acme adam": "ACME + Adam",
    "Acme all four": "all four",
}
WAYS = (  # of a step: label, suffix of its row, looks, and where it lies about its mode's line
    ("as it is", "", VERMILLION, "s", -0.2),
    ("compile=True", ", compiled", BLUE, "o", 0.0),
    ("captured by the caller", ", captured", GREEN, "D", 0.2),
)


def step_panels(panels: np.ndarray, steps: pd.DataFrame) -> None:
    """The ratio to torch's optimizer of each mode, for each parameter set."""
    for axes, (name, rows) in zip(panels, steps.groupby("parameters", sort=False), strict=True):
        rows = rows.set_index("optimizer")
        for place, mode in enumerate(MODES):
            for label, suffix, color, marker, aside in WAYS:
                if (row := mode + suffix) not in rows.index:
                    continue
                at = place + aside
                wanted = [rows.target[row]] * 2
                axes.plot(wanted, [at - 0.1, at + 0.1], color="black", linewidth=1.5, label="wanted at most")
                axes.plot(rows.ratio[row], at, color=color, marker=marker, linestyle="", label=label)
        axes.set_title(f"{name} ({rows.tensors.iloc[0]} tensors)")
        axes.set_xscale("log", base=2)
        axes.set_xticks([1 / 16, 0.25, 1, 4], ["1/16", "¼", "1", "4"])
        axes.set_xlim(min(0.2, 0.7 * rows.ratio[rows.index.str.startswith("Acme")].min()), 14)
        axes.set_yticks(range(len(MODES)), list(MODES.values()))
        axes.set_ylim(len(MODES) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    peers = "time of a step, in those of torch's SGD (all off, ACME) or AdamW (the others), foreach"
    panels[1].set_xlabel(peers)


def training_panel(axes: Axes, epochs: pd.DataFrame, where: str) -> None:
    """The share of forward and backward alone that whole epochs reach."""
    epochs = epochs[epochs.of_limit.notna()]
    ways = epochs.model + ", " + epochs.precision + np.where(epochs.compiled, ", compiled", "")
    places = {way: place for place, way in enumerate(dict.fromkeys(ways))}
    looks = {"SGD": (GREY, "D"), "ACME": (BLUE, "o"), "all four": (VERMILLION, "s")}
    for optimizer, (color, marker) in looks.items():
        mine = epochs[epochs.optimizer == optimizer]
        if mine.empty:
            continue
        axes.plot(
            100 * mine.of_limit, ways[mine.index].map(places), color=color, marker=marker, linestyle="",
            label=optimizer,
        )  # fmt: skip
    for way, place in places.items():
        wanted = 80 if way.startswith("WRN-10-1") else 92
        axes.plot([wanted] * 2, [place - 0.35, place + 0.35], color="black", linewidth=1.5)
    axes.set_yticks(list(places.values()), list(places))
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(min(50, 95 * epochs.of_limit.min()), max(105, 102 * epochs.of_limit.max()))
    axes.set_xlabel(f"images per second of whole epochs, in % of forward and backward alone\n\n{where}")
    axes.legend(loc="lower left", bbox_to_anchor=(1.0, 0.0))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cpu")
    name = arguments.parse_args().device
    steps, epochs = (pd.read_csv(RESULTS / f"{what}-{name}.csv") for what in ("step_cost", "training"))
    about = json.loads((RESULTS / f"step_cost-{name}.json").read_text())
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(5, 2 + epochs.of_limit.notna().sum() / 3))
    first = figure.add_subplot(grid[0, 0])
    panels = np.array([first, *(figure.add_subplot(grid[0, i], sharey=first) for i in (1, 2))])
    step_panels(panels, steps)
    for axes in panels[1:]:
        axes.tick_params(labelleft=False)
    where = f"{about['device']}, torch {about['versions']['torch']}"
    training_panel(figure.add_subplot(grid[1, :]), epochs, where)
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=len(unique))
    folder = Path(os.environ.get("BENCHMARKS", ROOT / "figures" / "benchmarks"))
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        figure.savefig(folder / f"{name}.{suffix}", metadata=metadata)
    print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
