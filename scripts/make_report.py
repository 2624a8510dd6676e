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
from study.runs import Run, UsageError, device_of, read_study
from study.words import given
from study.write import write_whole

FIGURES = {
    "peers_robustness": "Beside peers: test error after the last epoch against the scale, in multiples of each default.",
    "peers_price": "Beside peers: test error against what it cost, untuned and tuned.",
    "peers_budget": "Beside peers: test error of a search for the scale against what the search may cost.",
    "robustness_error": "Test error after the last epoch against the initial step size.",
    "robustness_step_size": "The step size over training, from each initial one.",
    "test_error_evaluations": "Test error against gradient evaluations.",
    "test_error_seconds": "Test error against seconds of training.",
    "test_error_epoch": "Test error against epochs.",
    "train_loss_evaluations": "Training loss against gradient evaluations.",
    "train_loss_seconds": "Training loss against seconds of training.",
    "train_loss_epoch": "Training loss against epochs.",
    "step_size_evaluations": "Step size against gradient evaluations.",
    "decisions_epoch": "How the step size was decided, by epoch.",
}


def how(runs: list[Run]) -> tuple[list[str], pd.DataFrame]:
    """What all runs have in common, and a line a run of the rest: its name, its options, and what its JSON says."""
    options = [given(run.config) + given(run.config, {"threads", "device"}) for run in runs]
    common = [option for option in options[0] if all(option in some for some in options)]
    table = pd.DataFrame(
        {
            "Run": [f"{run.path.parent.name}/{run.path.stem}" for run in runs],
            "Status": [run.sidecar["status"] for run in runs],
            "Options": [", ".join(option for option in some if option not in common) for some in options],
            "Device": [device_of(run) for run in runs],
            "Commit": [str(run.sidecar["commit"]) for run in runs],
            "Start (UTC)": [str(run.sidecar.get("start", ""))[:16].replace("T", "\u00a0") for run in runs],
            "Seconds": [str(run.sidecar.get("duration", "")).split(".")[0] for run in runs],
        }
    )
    same = [name for name in table if len(runs) > 1 and table[name].nunique() == 1]
    return common + [f"{name.lower()} {table[name][0]}" for name in same], table.drop(columns=same)


def environment(runs: list[Run]) -> pd.DataFrame:
    """Package versions, devices and commits, and how many runs have each."""
    found = Counter(
        (name, str(value))
        for run in runs
        for name, value in (
            *run.sidecar["versions"].items(),
            ("device", device_of(run)),
            ("commit", run.sidecar["commit"]),
        )
        if value is not None
    )
    return pd.DataFrame(
        [(*entry, count) for entry, count in sorted(found.items())], columns=["", "Value", "Runs"]
    )


def work(results: Path, study: str, out: Path) -> None:
    tables, problems = tables_of(results, study)
    runs = [run for part in parts_of(results / study) for run in read_study(results / study / part)[0]]
    pictures = {path: words for name, words in FIGURES.items() if (path := out / f"{name}.png").exists()}
    if not pictures:
        raise UsageError(f"{out} holds no figures; make figures draws them.")
    common, table = how(runs)
    environments = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environments.get_template("report.html.jinja").render(
        study=study,
        problems=problems,
        tables=tables,
        figures=[(base64.b64encode(path.read_bytes()).decode(), words) for path, words in pictures.items()],
        common=common,
        runs=table,
        environment=environment(runs),
    )
    write_whole(out / "report.html", page + "\n")
    print(out / "report.html")


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
