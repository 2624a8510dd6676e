"""Files that are there whole or not at all, and output that no encoding stops."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

from icassp25.config import UsageError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a name that no other process has, then rename it: it is there whole or not at all.

    Raises:
        UsageError: it cannot be written, as on a full disk; what was there before stays.
    """
    name = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        name.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(name, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}).") from None
    finally:
        name.unlink(missing_ok=True)


def print_what_can_be_said() -> None:
    """Have `print` replace what the encoding of the output lacks, as a Latin-1 terminal's does `…`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
