"""What is committed under figures/ is what the committed runs give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Those with tables: a sweep of one's own into results/ has none until they are made. figures/peers/ is the overview.
STUDIES = sorted({path.parent.name for path in (ROOT / "figures").glob("*/*.md")} - {"peers"})
COMMITTED = {"PYTHON": sys.executable, "RESULTS": "results", "STUDIES": ""}


@pytest.mark.parametrize("name", [*STUDIES, "overview"])
def test_tables_are_those_of_the_results(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, **COMMITTED, "FIGURES": str(tmp_path), "STUDY": name}
    what = "overview" if name == "overview" else "tables"
    done = subprocess.run(
        [str(ROOT / "scripts" / "rebuild.sh"), what],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.md"))
    assert made
    for path in made:
        for suffix in (".md", ".tex", ".csv"):
            there = (ROOT / "figures" / path).with_suffix(suffix)
            assert (tmp_path / path).with_suffix(suffix).read_text() == there.read_text(), there
