"""What the benchmarks share: how they are asked, tables, and files that appear whole."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.benchmark import timer  # waits for the device first

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # for icassp25 and study

from icassp25.files import print_what_can_be_said, write_whole
from icassp25.train import device_name

RESULTS = Path(os.environ.get("BENCHMARKS", ROOT / "results" / "benchmarks"))
PACKAGES = ("torch", "torchvision", "prodigyopt", "pytorch-optimizer")
BEGIN = time.perf_counter()
Rows = Sequence[Mapping[str, Any]] | pd.DataFrame


def parser(description: str | None, device: bool = False) -> ArgumentParser:
    """Of a benchmark's options; `device`: with `--device`, by default CUDA's where there is one."""
    print_what_can_be_said()
    result = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    if device:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        result.add_argument("--device", choices=("cpu", "cuda"), default=default)
    return result


def save(name: str, rows: Rows, device: torch.device, **more: Any) -> None:
    """Write `rows` to results/benchmarks/`name`.csv and what they were measured on to the JSON beside it."""
    seconds = time.perf_counter() - BEGIN
    installed = {each.name.replace("_", "-"): each.version for each in metadata.distributions()}
    about = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "host_cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: installed.get(package) for package in PACKAGES},
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


def show(title: str, rows: Rows) -> None:
    """Print `rows` as a table of aligned columns."""
    table = pd.DataFrame(rows).fillna(float("nan"))
    print(f"\n{title}\n{table.to_string(index=False, na_rep='', float_format='{:.4g}'.format)}", flush=True)


def timed(function: Callable[[], Any]) -> float:
    """Seconds that `function` takes, until the device has done it."""
    begin = timer()
    function()
    return timer() - begin


def medians(contestants: Mapping[str, Callable[[], Any]], turns: int, warm_ups: int = 0) -> pd.Series:
    """Seconds that each of `contestants` takes, who take turns; of some first turns nothing is kept."""
    each_turn = ({name: timed(each) for name, each in contestants.items()} for _ in range(warm_ups + turns))
    return pd.DataFrame(each_turn)[warm_ups:].median()


def waits(function: Callable[[], Any]) -> int:
    """How often `function` makes the host wait for the CUDA device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
