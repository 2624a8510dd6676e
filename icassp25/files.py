"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name in its folder, then rename it: it is there whole or not at all."""
    with temporary(path) as name:
        name.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(name, path)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` that no other process has, here or on a machine that shares the folder."""
    name = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield name
    finally:
        name.unlink(missing_ok=True)
