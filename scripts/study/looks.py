"""How all figures look, whatever the user's settings say, and how they are saved."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from icassp25.files import write_whole
from study.titles import BLUE, VERMILLION

FULL_WIDTH = 7.0
"""Inches: the text width of a two-column paper."""

PAIR_STYLE = {
    "without ACME": {"color": VERMILLION, "linestyle": "--", "marker": "s"},
    "with ACME": {"color": BLUE, "linestyle": "-", "marker": "o"},
}
CROSSES = {"linestyle": "", "marker": "x", "markersize": 4}
"""Of runs that diverged."""


matplotlib.rcdefaults()
matplotlib.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 7,
        "axes.titlesize": 7.5,
        "axes.labelsize": 7.5,
        "figure.titlesize": 7,
        "figure.labelsize": 7.5,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "lines.linewidth": 1.2,
        "lines.markersize": 3,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.5,
        "pdf.fonttype": 42,
        "savefig.dpi": 200,
    }
)


def new_figure(height: float) -> Figure:
    """In full width; no window, and nothing to close."""
    return Figure(figsize=(FULL_WIDTH, height))


def caption(figure: Figure, text: str) -> None:
    """Say above a figure what it is drawn from, in lines of about the same length."""
    lines = math.ceil(len(text) / (figure.get_figwidth() * 19))
    figure.suptitle("\n".join(textwrap.wrap(text, len(text) // lines + 10)), color="#444444")


def draw_errors(axes: Axes, errors: Mapping[float, list[float]], bars: bool, **look: Any) -> None:
    """The means of errors over starts, with bars from the smallest to the largest."""
    means = np.array([np.mean(values) for values in errors.values()])
    ends = [
        means - [min(values) for values in errors.values()],
        [max(values) for values in errors.values()] - means,
    ]
    axes.errorbar(list(errors), means, ends if bars else None, capsize=2, **look)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name.pdf` and `name.png`, the same bytes for the same figure."""
    folder.mkdir(parents=True, exist_ok=True)
    ConstrainedLayoutEngine().execute(figure)  # once, for both formats
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, metadata=metadata)
        write_whole(folder / f"{name}.{suffix}", content.getvalue())
