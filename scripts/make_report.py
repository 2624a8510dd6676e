#!/usr/bin/env python3
"""One self-contained page of a study: its tables, its figures, how each run was made, and in what environment.

Writes report.html to OUT/STUDY, from the CSVs and JSONs of the study and the PNGs that are in OUT/STUDY already.
"""

import base64
import sys
from collections import Counter
from pathlib import Path

import jinja2
import pandas as pd
from study.collect import parts_of, tables_of
from study.command import command_line
from study.runs import Run, device_of, read_study
from study.words import given
from study.write import write_whole


def how(runs: list[Run]) -> tuple[list[str], pd.DataFrame]:
    """What all runs have in common, and a line a run of the rest: its name, its options, and what its JSON says."""
    options = [given(run.config) for run in runs]
    common = [option for option in options[0] if all(option in some for some in options)]
    table = pd.DataFrame(
        {
            "Run": f"{run.path.parent.name}/{run.path.stem}",
            "Status": run.sidecar["status"],
            "Options": ", ".join(option for option in some if option not in common),
            "Device": device_of(run),
            "Commit": str(run.sidecar["commit"]),
            "Start (UTC)": str(run.sidecar.get("start", ""))[:16].replace("T", "\u00a0"),
            "Seconds": str(run.sidecar.get("duration", "")).split(".")[0],
        }
        for run, some in zip(runs, options, strict=True)
    )
    same = [name for name in table if len(runs) > 1 and table[name].nunique() == 1]
    return common + [f"{name.lower()} {table[name][0]}" for name in same], table.drop(columns=same)


def environment(runs: list[Run]) -> pd.DataFrame:
    """Package versions, devices and commits, and how many runs have each."""
    of_run = [
        {"device": device_of(run), "commit": run.sidecar["commit"], **run.sidecar["versions"]} for run in runs
    ]
    counts = Counter((name, str(value)) for entries in of_run for name, value in entries.items() if value)
    lines = [(*entry, count) for entry, count in sorted(counts.items())]
    return pd.DataFrame(lines, columns=["", "Value", "Runs"])


def work(results: Path, study: str, out: Path) -> None:
    tables, problems = tables_of(results, study)
    runs = [run for part in parts_of(results / study) for run in read_study(results / study / part)[0]]
    pictures = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in out.glob("*.png")}
    if not pictures:
        problems.append(f"No figures: {out} holds none; make figures draws those that the study has.")
    common, table = how(runs)
    environments = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environments.get_template("report.html.jinja").render(
        study=study,
        problems=problems,
        tables=tables,
        pictures=pictures,
        common=common,
        runs=table,
        environment=environment(runs),
    )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "report.html", page + "\n")
    print(out / "report.html")


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
