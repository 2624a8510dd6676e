"""What the scripts share: their options, and how they print and end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from icassp25.config import UsageError


def command_line(description: str, work: Callable[..., None], several: str = "") -> int:
    """Run `work(results, study, out)`, of `several` studies into a folder of that name; a `UsageError` is one sentence and
    exit code 2. What the output's encoding cannot say is replaced."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("figures"), help=f"writes to OUT/{several or 'STUDY'}; %(default)s"
    )
    if several:
        parser.add_argument("--studies", nargs="+", required=True, help="folders of --results")
    else:
        parser.add_argument("--study", default="quick", help="folder of --results; default: %(default)s")
    options = parser.parse_args()
    studies = options.studies if several else [options.study]
    out = options.out / (several or options.study)
    try:
        for study in studies:
            if not (options.results / study).is_dir():
                raise UsageError(f"{options.results / study}: no such study; the sweeps would make it.")
        work(options.results, studies if several else options.study, out)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
