#!/usr/bin/env python3
"""Every figure of a study, from its CSVs: NAME.pdf and .png in OUT/STUDY."""

import sys
from collections.abc import Iterator
from pathlib import Path

from study import pair_figures, peer_figures
from study.beside_peers import Peers
from study.collect import parts_of
from study.command import command_line
from study.looks import Figure, save
from study.tables import UsageError, load_pairs, load_starts


def figures_of_part(results: Path, study: str, part: str) -> Iterator[tuple[str, Figure]]:
    if part == "peers":
        yield from peer_figures.figures(Peers(results, study))
    elif part == "table":
        yield from pair_figures.curves(load_pairs(results / study / part)[0])
    elif part == "lr":
        yield from pair_figures.starts(load_starts(results / study / part)[0])


def work(results: Path, study: str, out: Path) -> None:
    figures, problems = [], []
    for part in parts_of(results / study):
        try:
            figures += figures_of_part(results, study, part)
        except UsageError as problem:
            problems.append(f"No figures of {part}/: {problem}")
    if not figures:
        raise UsageError("\n".join(problems) or f"{results / study} holds nothing to draw.")
    for name, figure in figures:
        save(figure, out, name)
    print("\n".join([*problems, f"Figures are in {out}."]))


if __name__ == "__main__":
    sys.exit(command_line(__doc__, work))
