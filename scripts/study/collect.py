"""Every table that a study has: of each folder of its runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from icassp25.config import UsageError
from study import beside_peers, tables
from study.write import Table

MAKERS = {
    "peers": beside_peers.peer_tables,
    "table": tables.main_table,
    "lr": tables.starts_table,
    "equal": tables.equal_table,
}
"""By folder, in this order; others have a table of options."""


def parts_of(folder: Path) -> list[str]:
    """A study's folders of runs, of those there are."""
    found = {path.parent.name for suffix in ("csv", "json") for path in folder.glob(f"*/*.{suffix}")}
    return [*(part for part in MAKERS if part in found), *sorted(found.difference(MAKERS))]


def tables_of(results: Path, study: str) -> tuple[list[Table], list[str]]:
    """A study's tables, and why there are not more; a `UsageError` where there are none."""
    made: list[Table] = []
    problems = []
    for part in parts_of(results / study):
        try:
            one = MAKERS.get(part, partial(tables.options_table, folder=part))(results, study)
            made += one if isinstance(one, list) else [one]
        except UsageError as problem:
            problems.append(f"No table of {part}/: {problem}")
    if not made:
        raise UsageError("\n".join(problems) or f"{results / study} holds no runs; the sweeps make them.")
    return made, problems
