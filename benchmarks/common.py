"""What the benchmarks share: how they are asked, tables, and files that appear whole."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from icassp25.files import print_what_can_be_said, write_whole
from icassp25.train import device_name

RESULTS = Path(os.environ.get("BENCHMARKS", ROOT / "results" / "benchmarks"))
PACKAGES = ("torch", "torchvision", "prodigyopt", "pytorch-optimizer")
Row = Mapping[str, Any]


def parser(description: str | None) -> argparse.ArgumentParser:
    print_what_can_be_said()
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def save(name: str, rows: Sequence[Row], device: torch.device, begin: float, **more: Any) -> None:
    """Write `rows` to results/benchmarks/`name`.csv and what they were measured on to the JSON beside it.

    `begin` is what `time.perf_counter` said at the benchmark's begin.
    """
    seconds = time.perf_counter() - begin
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
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.csv"
    write_whole(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.4g", lineterminator="\n"))
    write_whole(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    print(f"\n{path} ({seconds:.0f} s)")


def show(title: str, rows: Sequence[Row], hidden: Sequence[str] = ()) -> None:
    """Print `rows` as a table of aligned columns, without those that are `hidden`."""
    table = pd.DataFrame(rows).drop(columns=list(hidden)).fillna(float("nan"))
    print(f"\n{title}\n{table.to_string(index=False, na_rep='', float_format='{:.4g}'.format)}", flush=True)


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `function` takes, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
