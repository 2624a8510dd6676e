"""The record of a run: one CSV row an epoch, and a JSON beside it that says what was run.

This module alone knows the columns, for writing (with the standard library only) and for reading (with pandas).
Each file is written whole under a temporary name and renamed, so that a reader, or a killed run, never leaves or
meets half of one. The JSON is the last thing to say "finished": where it does, the CSV is whole.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icassp25.config import RunConfig, UsageError
from icassp25.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

COUNTS = ("epoch", "steps", "evaluations")
MEASURES = ("seconds", "lr", "step_size", "train_loss", "train_error", "test_loss", "test_error")
SHARES = (*(f"share_{code}" for code in range(8)), "share_nonfinite")
VALIDATION = ("validation_loss", "validation_error")

GIVEN = {"versions": dict, "commit": (str, type(None)), "device": str, "parameters": int}
"""What the training loop has to say about itself in the JSON, and the types; the rest is known here."""


class UnusableRun(ValueError):
    """A CSV or its JSON cannot be read as a finished run; the message is one sentence that says why."""


def columns(config: RunConfig) -> tuple[str, ...]:
    """The CSV's columns, in their order."""
    return COUNTS + MEASURES + SHARES + (VALIDATION if config.validation > 0 else ())


def csv_path(output: str) -> Path:
    """The CSV that `--output` names, with or without its suffix."""
    return Path(output if output.endswith(".csv") else output + ".csv")


def sidecar_path(path: Path) -> Path:
    """The JSON that belongs to a run's CSV."""
    return path.with_suffix(".json")


def checkpoint_path(path: Path) -> Path:
    """What an interrupted run goes on from."""
    return path.with_suffix(".checkpoint")


@dataclass(frozen=True)
class Row:
    """One epoch of a run.

    `steps`, `evaluations` (gradient evaluations) and `seconds` (training, without testing) count from the
    start of the run; errors are fractions. `shares` are those of decision codes 0 to 7 and of non-finite
    look-ahead points among the epoch's steps, None with ACME off; the validation values are None unless
    images are held out. A loss that is not finite says that the run diverged.
    """

    epoch: int
    steps: int
    evaluations: int
    seconds: float
    lr: float
    step_size: float
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    shares: tuple[float, ...] | None = None
    validation_loss: float | None = None
    validation_error: float | None = None

    @property
    def diverged(self) -> bool:
        losses = (self.train_loss, self.test_loss, self.validation_loss)
        return not all(math.isfinite(loss) for loss in losses if loss is not None)

    def cells(self, config: RunConfig) -> list[str]:
        """The row as the CSV's text: floats so that reading gives the same bits, empty where None."""
        shares = self.shares or (None,) * len(SHARES)
        named = {**vars(self), **dict(zip(SHARES, shares, strict=True))}
        cells = ((int if name in COUNTS else float, named[name]) for name in columns(config))
        return ["" if value is None else repr(kind(value)) for kind, value in cells]


class RunLog:
    """Writes a run's CSV, to `path`, and the JSON beside it; a `UsageError` where they cannot be written.

    `sidecar` is what the training loop knows: `versions` (name → version), `commit` (or None), `device` (in
    words), `parameters` (their number), and further names. `rows` are those of the epochs already trained, when
    resuming.
    """

    def __init__(
        self, path: Path, config: RunConfig, sidecar: Mapping[str, Any], rows: Iterable[Row] = ()
    ) -> None:
        self.path, self.config, self.rows = Path(path), config, list(rows)
        self.status, self._sidecar = "running", dict(sidecar)
        self._start = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._clock = time.monotonic()
        if self.rows:
            # An interrupted run keeps its start, and its duration counts on.
            with contextlib.suppress(UnusableRun, KeyError, TypeError, ValueError):
                earlier = _read_json(sidecar_path(self.path))
                self._start, self._clock = str(earlier["start"]), self._clock - float(earlier["duration"])
        check_writable(self.path)
        # The JSON first: from here on nobody takes what an older run left in the CSV for finished.
        self._write_json()
        self._write_csv()

    def append(self, row: Row) -> None:
        """Add an epoch's row; both files are up to date on return."""
        self.rows.append(row)
        self._write_csv()
        self._write_json()

    def finish(self) -> None:
        """Say in the JSON that the run is over: diverged if some row's loss is not finite, else finished."""
        diverged = any(row.diverged for row in self.rows)
        self.status = "diverged" if diverged else "finished"
        self._write_json()

    def _write_csv(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns(self.config))
        writer.writerows(row.cells(self.config) for row in self.rows)
        write_whole(self.path, text.getvalue())

    def _write_json(self) -> None:
        known = {
            "status": self.status,
            "finished": self.status != "running",
            "rows": len(self.rows),
            "seed": self.config.seed,
            "options": self.config.to_dict(),
            "steps_per_epoch": self.config.steps_per_epoch,
            "host_cores": os.cpu_count(),
            "start": self._start,
            "duration": round(time.monotonic() - self._clock, 3),
        }
        content = json.dumps({**known, **self._sidecar, **known}, indent=2, allow_nan=False)
        write_whole(sidecar_path(self.path), content + "\n")


def check_writable(path: Path) -> None:
    """Make the folder of a run's CSV and try to write there; a `UsageError` if that fails."""
    if path.suffix != ".csv":
        raise UsageError(f"--output {path}: expected a name that ends in .csv.")
    if path.is_dir():
        raise UsageError(f"--output {path}: is a folder, expected the name of a CSV file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror or error}).") from None


@dataclass(frozen=True)
class Run:
    """A finished (or diverged) run, as read: counts are int64, all else float64, empty cells NaN."""

    path: Path
    config: RunConfig
    sidecar: dict[str, Any]
    frame: pd.DataFrame

    @property
    def diverged(self) -> bool:
        return self.sidecar["status"] == "diverged"


def settled(path: Path, config: RunConfig) -> bool:
    """Whether nothing is left to do for `config`, a `--resume` of a run that `path` already holds finished.

    Raises:
        UsageError: going on would overwrite a run, finished or not, or mix two.
    """
    finished, differences = False, []
    resumable = checkpoint_path(path).exists()
    try:
        sidecar = _read_json(sidecar_path(path))
        differences = config.same_run(_read_config(sidecar))
        finished = sidecar.get("finished") is True and path.exists()
    except UnusableRun as why:
        if not resumable and _rows(path) > 0:
            raise UsageError(f"--output {path}: holds rows, but {why}; name another or delete it.") from why
    if not finished and not resumable and _rows(path) == 0:
        return False
    state, to = ("finished", "keep it") if finished else ("interrupted", "go on")
    if differences:
        raise UsageError(
            f"--output {path}: holds a run, {state}, that differs in {', '.join(differences)}; "
            "choose another name or delete it."
        )
    if not config.resume:
        raise UsageError(
            f"--output {path}: holds this run, {state}; "
            f"choose another name, delete it, or pass --resume to {to}."
        )
    return finished


def _rows(path: Path) -> int:
    """The lines of a CSV behind its header."""
    with contextlib.suppress(OSError):  # `check_writable` says what is wrong
        return max(0, len(path.read_bytes().splitlines()) - 1)
    return 0


def read_run(path: Path) -> Run:
    """Read a finished run.

    Raises:
        UnusableRun: the JSON is missing or unreadable, the run is not finished, or the CSV is not what the
            JSON says: other columns, a row cut off or missing, a cell that is not a finite number in a run
            that did not diverge.
    """
    import pandas as pd

    sidecar = _read_json(sidecar_path(path))
    config = _read_config(sidecar)
    status, rows = sidecar.get("status"), sidecar.get("rows")
    if status not in ("finished", "diverged") or sidecar.get("finished") is not True:
        raise UnusableRun(f"the run is not finished ({rows} of {config.epochs} epochs)")
    for name, kind in GIVEN.items():
        if name not in sidecar or not isinstance(sidecar[name], kind):
            raise UnusableRun(f"its JSON lacks {name}, or it is not what a run writes")
    table = _read_cells(path, columns(config))
    diverged = status == "diverged"
    if len(table) != rows or not (diverged or rows == config.epochs):
        raise UnusableRun(f"{len(table)} rows where its JSON says {rows}, of {config.epochs} epochs")

    def number(text: str, line: int, name: str) -> float:
        count, empty = name in COUNTS, name in SHARES and not config.acme
        with contextlib.suppress(ValueError):
            value = int(text) if count else float(text) if text else math.nan
            usable = 0 <= value < 2**63 if count else diverged or math.isfinite(value)
            if (not text) if empty else usable:
                return value
        expected = "nothing, as ACME is off" if empty else "a finite number"
        raise UnusableRun(f'{name} is "{text}" in line {line}, expected {expected}')

    cells = {
        name: [number(row[index], line, name) for line, row in enumerate(table, start=2)]
        for index, name in enumerate(columns(config))
    }
    if cells["epoch"] != list(range(1, len(table) + 1)):
        raise UnusableRun(f"its epochs are not 1 to {len(table)}")
    dtypes = {name: "int64" if name in COUNTS else "float64" for name in cells}
    return Run(path, config, sidecar, pd.DataFrame(cells).astype(dtypes))


def read_study(folder: Path) -> tuple[list[Run], list[str]]:
    """A folder's finished runs, by name, and for every other file a sentence: why it is left out."""
    runs, left_out = [], []
    names = {path.with_suffix(".csv") for suffix in ("csv", "json") for path in folder.glob(f"*.{suffix}")}
    for path in sorted(names):
        try:
            runs.append(read_run(path))
        except UnusableRun as reason:
            left_out.append(f"{path.name} is left out: {reason}.")
    return runs, left_out


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UnusableRun(f"its JSON ({path.name}) is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableRun(f"its JSON ({path.name}) cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise UnusableRun(f"its JSON ({path.name}) is not an object")
    return content


def _read_config(sidecar: dict[str, Any]) -> RunConfig:
    try:
        config = RunConfig.from_dict(sidecar["options"])
        config.check()
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise UnusableRun(f"its JSON does not hold a run's options ({str(error).rstrip('.')})") from None
    return config


def _read_cells(path: Path, expected: tuple[str, ...]) -> list[list[str]]:
    """The CSV's rows as text, all of the expected length."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # with a byte-order mark or without
        header, *table = list(csv.reader(io.StringIO(text))) or [[]]
    except FileNotFoundError:
        raise UnusableRun("the CSV of this JSON is missing") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UnusableRun(f"the CSV cannot be read ({error})") from None
    if tuple(header) != expected:
        unknown = [f'"{name}" is not one' for name in header if name not in expected]
        missing = [f'"{name}" is missing' for name in expected if name not in header]
        differences = ", ".join(unknown + missing) or "in another order, or twice"
        raise UnusableRun(f"its columns are not those of a run ({differences})")
    for line, row in enumerate(table, start=2):
        if len(row) != len(expected):
            raise UnusableRun(f"line {line} has {len(row)} cells, expected {len(expected)}")
    if not text.endswith("\n"):
        raise UnusableRun(f"line {len(table) + 1} is cut off")
    return table
