"""What the benchmarks share: the machine in words, tables, and files that appear whole."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from icassp25.files import write_whole
from icassp25.train import device_name

RESULTS = ROOT / "results" / "benchmarks"
PACKAGES = ("torch", "torchvision", "prodigyopt", "pytorch-optimizer")

Row = Mapping[str, Any]


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def save(name: str, rows: Sequence[Row], device: torch.device, seconds: float, **more: Any) -> Path:
    """Write `rows` to results/benchmarks/`name`.csv and what they were measured on to the JSON beside it."""
    folder = Path(os.environ.get("BENCHMARKS", RESULTS))
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "host_cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "duration_s": round(seconds, 1),
        **more,
    }
    path = folder / f"{name}.csv"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    write_whole(path, table.getvalue())
    write_whole(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    return path


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value


def show(title: str, rows: Sequence[Row]) -> None:
    """Print `rows` as a table of aligned columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[str(_cell(row.get(column))) for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    print(f"\n{title}")
    for line in [columns, *cells]:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *rest]).rstrip(), flush=True)
