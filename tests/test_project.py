"""The project as a whole: the smoke preset end to end, the recipes, and files that have to agree."""

import os
import re
import subprocess
import sys

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def bash(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PRESET", "STUDY", "DATASET", "DATA_DIR", "PRECISION")
    }
    return subprocess.run(
        ["bash", str(ROOT / script)], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**environment, "PYTHON": sys.executable, **env},
    )  # fmt: skip


def test_smoke_preset_end_to_end(tmp_path: Path) -> None:
    """`make smoke`, in a folder of its own, two runs at a time: 36 runs, tables, figures; then there is nothing left to do."""
    folders = {"RESULTS": str(tmp_path / "results"), "FIGURES": str(tmp_path / "figures")}
    folders |= {"PRESET": "smoke", "JOBS": "2"}
    done = bash("scripts/reproduce.sh", **folders)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.index("runs     36") < done.stdout.index(
        "] smoke/table/sgd.seed42: finished: test error"
    )
    tables, figures = tmp_path / "results" / "smoke", tmp_path / "figures" / "smoke"
    assert len(list((tables / "table").glob("*.csv"))) == 16 == len(list((tables / "table").glob("*.json")))
    assert len(list((tables / "lr").glob("*.csv"))) == 12
    assert len(list((tables / "equal").glob("*.csv"))) == 8
    made = {path.name for path in figures.iterdir()}
    assert {"table.md", "table.tex", "table.csv", "robustness.md", "equal.md"} <= made
    assert {"robustness_error.png", "robustness_step_size.pdf", "test_error_evaluations.png"} <= made
    assert "synthetic" in (figures / "table.md").read_text()
    report = (figures / "report.html").read_text()
    assert report.count("<figure>") == 10 and "://" not in report  # all in one file
    assert all(f"{part}/" in report for part in ("table", "lr", "equal"))
    text = (figures / "table.md").read_text()
    assert "—" not in re.sub(r"^.*Table.*$", "", text.split("\n\n")[1]) and "ASAM" in text

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.*")) if path.suffix != ".log"}

    before = files()
    for sweep in ("table", "lr", "equal"):
        again = bash(f"scripts/sweep_{sweep}.sh", **folders)
        assert again.returncode == 0
        assert again.stdout.count("already finished") == len(list((tables / sweep).glob("*.csv")))
    assert files() == before

    status = bash("scripts/status.sh", **folders)
    assert status.returncode == 0 and status.stdout.splitlines()[0].split() == ["36", "finished"]


@pytest.fixture
def no_data(tmp_path: Path) -> str:
    """A Python for which CIFAR-100 is neither there nor to be had."""
    stub = tmp_path / "python"
    stub.write_text(
        f'#!/bin/bash\nif [ "$2" = icassp25.data ]; then echo "no data" >&2; exit 2; fi\nexec {sys.executable} "$@"\n'
    )
    stub.chmod(0o755)
    return str(stub)


def test_without_data_it_is_synthetic_and_says_so(no_data: str) -> None:
    done = bash("scripts/reproduce.sh", PRESET="quick", DRY_RUN="1", PYTHON=no_data, CIFAR100_ROOT="")
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC" in done.stdout
    commands = [line for line in done.stdout.splitlines() if "cifar100.acme.py" in line]
    assert len(commands) == 44
    assert all(
        "--dataset synthetic" in line and "reproduction/results/quick-synthetic/" in line for line in commands
    )


@pytest.mark.parametrize(
    ("preset", "emulated", "wanted", "runs_in"),
    [
        ("quick", True, "", "float32"),
        ("quick", False, "", "bfloat16"),
        ("quick", True, "bfloat16", "bfloat16"),
        ("quick", False, "float32", "float32"),
        ("paper", True, "", "tf32"),
        ("smoke", True, "", ""),
    ],
)
def test_a_device_without_bfloat16_reproduces_in_float32(
    tmp_path: Path, preset: str, emulated: bool, wanted: str, runs_in: str
) -> None:
    stub = tmp_path / "python"
    stub.write_text(
        f'#!/bin/bash\nif [[ $2 == *emulates_bfloat16* ]]; then printf "CPU: stub\\n{emulated}\\n"; fi\n'
    )
    stub.chmod(0o755)
    done = bash("scripts/reproduce.sh", PRESET=preset, DRY_RUN="1", PYTHON=str(stub), PRECISION=wanted)
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if "cifar100.acme.py" in line]
    assert len(commands) >= 36
    assert all(re.findall(r"--precision (\S+)", line) == runs_in.split() for line in commands)
    assert ("no bfloat16 on this device" in done.stdout) == (preset == "quick" and emulated and not wanted)


def test_a_wrong_folder_is_an_error_not_a_reason_for_synthetic(no_data: str, tmp_path: Path) -> None:
    done = bash("scripts/reproduce.sh", PRESET="quick", DRY_RUN="1", PYTHON=no_data, DATA_DIR=str(tmp_path))
    assert done.returncode == 2 and "SYNTHETIC" not in done.stdout


def test_make_help_names_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = {line.split()[0] for line in done.stdout.splitlines()}
    assert named >= {
        "help",
        "reproduce",
        "status",
        "data",
        "smoke",
        "tables",
        "figures",
        "report",
        "bench",
        "test",
        "lint",
    }
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert rules <= named


def requirements() -> dict[str, set[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return {"core": set(project["dependencies"]), **{name: set(extras[name]) for name in extras}}


def test_environments_agree() -> None:
    """What conda installs is what pip would; the pins are the same file."""
    text = (ROOT / "environment.yml").read_text()
    conda = set(re.findall(r"^  - ([a-z][a-z0-9_-]*(?:>=[\d.]+)?)$", text, re.MULTILINE)) - {
        "conda-forge",
        "pip",
    }
    wanted = requirements()
    assert conda == {
        r for r in wanted["experiments"] | wanted["dev"] if not r.startswith("torch") and ";" not in r
    }
    assert wanted["core"] == {"torch>=2.6"}
    assert "--requirement requirements.txt" in text and "--editable .[experiments,dev]" in text
    pins = dict(re.findall(r"^(torch\w*)==([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert pins.keys() == {"torch", "torchvision"}


def test_wheel_holds_the_optimizer_alone() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tool["packages"] == ["acme"]


def test_committed_results_have_their_json() -> None:
    runs = sorted((ROOT / "results").glob("**/*.csv"))
    assert runs
    for path in runs:
        assert path.with_suffix(".json").exists(), path
