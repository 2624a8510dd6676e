"""What the runs of a list have come to; the list is what the sweeps print with DRY_RUN=1. See status.sh."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from icassp25 import runlog
from icassp25.config import RunConfig
from icassp25.lock import TAKEN, is_locked

STATES = ("finished", "running", "interrupted", "failed", "missing")


@dataclass(frozen=True)
class Entry:
    """A run of the list: how far it is, and how long that took."""

    config: RunConfig
    path: Path
    state: str  #: one of STATES; a run that diverged is finished
    epochs: int  #: trained so far
    seconds: float  #: spent on them, tests included
    remark: str

    @property
    def evaluations(self) -> float:
        """Gradient evaluations of an epoch."""
        return self.config.steps_per_epoch * self.config.evaluations_per_step


def configurations(lines: Iterable[str]) -> list[RunConfig]:
    """What the training script makes of the commands; a run that two sweeps share counts once."""
    specification = importlib.util.spec_from_file_location(
        "cifar100_acme", ROOT / "icassp25" / "cifar100.acme.py"
    )
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    parsed = [script.parse(shlex.split(line)[2:]) for line in lines if line.strip()]
    return list({config.output: config for config in parsed}.values())


def look_at(config: RunConfig) -> Entry:
    assert config.output is not None
    path = runlog.csv_path(config.output)
    about: dict[str, Any] = {}
    try:
        about = json.loads(runlog.sidecar_path(path).read_text())
    except (OSError, ValueError):
        pass
    epochs, seconds = int(about.get("rows", 0)), float(about.get("duration", 0.0))
    log = path.with_suffix(".log")
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    lines = [
        line for line in lines if TAKEN not in line
    ]  # said by those that left the run to another process
    last = lines[-1].strip() if lines else ""
    if about.get("finished") is True:
        return Entry(config, path, "finished", epochs, seconds, str(about.get("status")))
    if is_locked(path):
        return Entry(config, path, "running", epochs, seconds, f"epoch {epochs + 1} of {config.epochs}")
    # A killed run's log ends with an epoch's row.
    if last.startswith("interrupted") or last[:1].isdigit() or (about and not last):
        return Entry(config, path, "interrupted", epochs, seconds, f"after epoch {epochs} of {config.epochs}")
    if lines:
        return Entry(config, path, "failed", epochs, seconds, last)
    return Entry(config, path, "missing", 0, 0.0, "")


def time_left(entries: list[Entry]) -> float | None:
    """Seconds, by what an evaluation has taken so far and the number of runs at work; None if nothing is known."""
    spent = sum(entry.seconds for entry in entries)
    done = sum(entry.evaluations * entry.epochs for entry in entries)
    left = sum(
        entry.evaluations * (entry.config.epochs - entry.epochs)
        for entry in entries
        if entry.state != "finished"
    )
    at_once = max(1, sum(entry.state == "running" for entry in entries))
    return left * spent / done / at_once if done else None


def in_words(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def main() -> None:
    entries = [look_at(config) for config in configurations(sys.stdin)]
    for state in STATES:
        mine = [entry for entry in entries if entry.state == state]
        print(f"{len(mine):5} {state}")
        if state in ("running", "interrupted", "failed"):
            for entry in mine:
                print(f"      {entry.path}: {entry.remark}")
    if all(entry.state == "finished" for entry in entries):
        return
    left = time_left(entries)
    print("time left: " + ("unknown until an epoch is done" if left is None else f"about {in_words(left)}"))


if __name__ == "__main__":
    main()
