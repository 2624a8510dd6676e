#!/usr/bin/env python3
"""Every table of a study, from its CSVs: NAME.md, .tex and .csv in OUT/STUDY; and prints them with a summary."""

import sys
from pathlib import Path

from study.collect import tables_of
from study.command import command_line


def work(results: Path, study: str, out: Path) -> None:
    tables, problems = tables_of(results, study)
    for table in tables:
        table.write(out, study)
    print("\n".join([*map(str, tables), *problems, f"Written to {out}."]))


if __name__ == "__main__":
    sys.exit(command_line(__doc__, work))
