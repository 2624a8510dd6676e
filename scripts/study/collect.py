"""Every table that a study has: of each folder of its runs."""

from __future__ import annotations

from pathlib import Path

from icassp25.config import UsageError
from study import beside_peers, tables
from study.write import Table

FIRST = ("peers", "table", "lr", "equal")
"""In this order, before other folders."""


def parts_of(folder: Path) -> list[str]:
    """A study's folders of runs, of those there are."""
    found = {path.parent.name for suffix in ("csv", "json") for path in folder.glob(f"*/*.{suffix}")}
    return [*(part for part in FIRST if part in found), *sorted(found.difference(FIRST))]


def tables_of_part(results: Path, study: str, part: str) -> list[Table]:
    if part == "peers":
        peers = beside_peers.Peers(results, study)
        made = [
            beside_peers.peers_table(peers),
            beside_peers.equal_table(peers),
            beside_peers.budget_table(peers),
        ]
        return [table for table in made if table is not None]
    if part == "table":
        return [tables.main_table(results, study)]
    if part == "lr":
        return [tables.starts_table(results, study)]
    if part == "equal":
        return [tables.equal_table(results, study)]
    if part == "averages":
        return [tables.averages_table(results, study)]
    return [tables.options_table(results, study, part)]


def tables_of(results: Path, study: str) -> tuple[list[Table], list[str]]:
    """A study's tables, and why there are not more.

    Raises:
        UsageError: there are none.
    """
    made: list[Table] = []
    problems = []
    for part in parts_of(results / study):
        try:
            made += tables_of_part(results, study, part)
        except UsageError as problem:
            problems.append(f"No table of {part}/: {problem}")
    if not made:
        raise UsageError("\n".join(problems) or f"{results / study} holds no runs; the sweeps make them.")
    return made, problems
