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
from matplotlib.lines import Line2D

from icassp25.files import write_whole
from icassp25.runlog import Run
from study.titles import BLUE, GREY, VERMILLION
from study.words import scale_of, seeds_of

FULL_WIDTH = 7.0
"""Inches: the text width of a two-column paper."""
PAIR_STYLE = {
    "without ACME": {"color": VERMILLION, "linestyle": "--", "marker": "s"},
    "with ACME": {"color": BLUE, "linestyle": "-", "marker": "o"},
}
CROSSES = {"linestyle": "", "marker": "x", "markersize": 4}
"""Of runs that diverged."""

matplotlib.rc_file(Path(__file__).with_name("figures.mplstyle"))


def new_figure(height: float) -> Figure:
    """In full width; no window, and nothing to close."""
    return Figure(figsize=(FULL_WIDTH, height))


def describe(figure: Figure, runs: list[Run], several: str = "", before: str = "") -> None:
    """Say above a figure what it is drawn from, and of `several` seeds how, in lines of about the same length."""
    text = before + several * (len(seeds_of(runs)) > 1) + scale_of(runs)
    lines = math.ceil(len(text) / (figure.get_figwidth() * 19))
    figure.suptitle("\n".join(textwrap.wrap(text, len(text) // lines + 10)), color="#444444")


def pair_handles() -> list[Line2D]:
    return [Line2D([], [], label=words, **look) for words, look in PAIR_STYLE.items()]


def grey(label: str, **look: Any) -> Line2D:
    """The legend's line of what is not about one colour."""
    return Line2D([], [], color=GREY, label=label, **look)


def draw_errors(axes: Axes, errors: Mapping[float, list[float]], bars: bool, **look: Any) -> None:
    """The means of errors over starts, with bars from the smallest to the largest."""
    means = np.array([np.mean(values) for values in errors.values()])
    low, high = ([end(values) for values in errors.values()] for end in (min, max))
    axes.errorbar(list(errors), means, [means - low, high - means] if bars else None, capsize=2, **look)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name.pdf` and `name.png`, the same bytes for the same figure."""
    folder.mkdir(parents=True, exist_ok=True)
    ConstrainedLayoutEngine().execute(figure)  # once, for both formats
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, metadata=metadata)
        write_whole(folder / f"{name}.{suffix}", content.getvalue())
