"""What the scripts share: their options, and how they print and end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from icassp25.config import UsageError
from icassp25.files import print_what_can_be_said


def command_line(description: str, work: Callable[..., None], together: str = "") -> int:
    """Run `work(results, study, out)` for each study, or once for all, `together` into the folder of that name; a
    `UsageError` is one sentence and exit code 2. What the output's encoding cannot say is replaced."""
    print_what_can_be_said()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--study", nargs="+", default=["quick"], help="folders of --results; default: quick")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="default: %(default)s")
    options = parser.parse_args()
    try:
        for study in options.study:
            if not (options.results / study).is_dir():
                raise UsageError(f"{options.results / study}: no such study; the sweeps would make it.")
        for study in [options.study] if together else options.study:
            work(options.results, study, options.out / (together or study))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
