"""What the runs of a list have come to; the list is what the sweeps print with DRY_RUN=1. See status.sh."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from icassp25 import runlog
from icassp25.config import RunConfig, add_options
from icassp25.files import print_what_can_be_said
from icassp25.lock import TAKEN, is_locked

STATES = ("finished", "running", "interrupted", "failed", "missing")


def configurations(lines: list[str]) -> list[RunConfig]:
    """Those of the training script's commands; a run that two sweeps share counts once."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    given = [parser.parse_args(shlex.split(line)[2:]) for line in lines if line.strip()]
    parsed = [RunConfig(**vars(options)) for options in given]
    return list({config.output: config for config in parsed}.values())


def about(path: Path) -> dict[str, Any]:
    """What a run's JSON says, if there is one."""
    try:
        return json.loads(runlog.sidecar_path(path).read_text())
    except (OSError, ValueError):
        return {}


def state_of(path: Path, config: RunConfig) -> tuple[str, str]:
    """One of STATES, and a remark; a run that diverged is finished."""
    said = about(path)
    log = path.with_suffix(".log")
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    lines = [line for line in lines if TAKEN not in line]  # of those that left the run to another process
    last = lines[-1].strip() if lines else ""
    if said.get("finished") is True:
        return "finished", ""
    if is_locked(path):
        return "running", f"epoch {said.get('rows', 0) + 1} of {config.epochs}"
    # A killed run's log ends with an epoch's row.
    if last.startswith("interrupted") or last[:1].isdigit() or (said and not last):
        return "interrupted", f"after epoch {said.get('rows', 0)} of {config.epochs}"
    return ("failed", last) if lines else ("missing", "")


def in_words(seconds: float) -> str:
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def main() -> None:
    print_what_can_be_said()
    found: dict[str, list[str]] = {state: [] for state in STATES}
    spent = done = left = 0.0  # seconds, and gradient evaluations
    for config in configurations(sys.stdin.readlines()):
        path = runlog.csv_path(str(config.output))
        state, remark = state_of(path, config)
        found[state].append(f"      {path}: {remark}")
        said = about(path) if state != "missing" else {}
        evaluations, epochs = config.steps_per_epoch * config.evaluations_per_step, said.get("rows", 0)
        spent += said.get("duration", 0)
        done += evaluations * epochs
        left += evaluations * (config.epochs - epochs) * (state != "finished")
    for state, runs in found.items():
        print(f"{len(runs):5} {state}", *runs * (state in STATES[1:4]), sep="\n")
    if left:  # by what an evaluation has taken so far, and the number of runs at work
        at_once = max(1, len(found["running"]))
        words = (
            f"about {in_words(left * spent / done / at_once)}" if done else "unknown until an epoch is done"
        )
        print(f"time left: {words}")


if __name__ == "__main__":
    main()
