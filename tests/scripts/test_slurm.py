"""The sweeps as job arrays, on a real SLURM: any cluster that `sbatch` reaches from here (Debian's slurm-wlm and munge
make one of this machine alone). Skipped elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def cluster() -> bool:
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return False
    nodes = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False, timeout=60
    )
    return nodes.returncode == 0 and any(state in nodes.stdout for state in ("idle", "mixed", "allocated"))


pytestmark = pytest.mark.skipif(not cluster(), reason="no SLURM: sbatch is not here, or reaches no node")


def queue() -> list[str]:
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def wait(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, queue()
        time.sleep(0.3)


def stub(folder: Path, text: str) -> dict[str, str]:
    """A stand-in for Python, and the environment in which a sweep calls it."""
    script = folder / "python"
    script.write_text("#!/bin/bash\n" + text)
    script.chmod(0o755)
    return {**os.environ, "PYTHON": str(script), "PRESET": "smoke", "RESULTS": str(folder / "results")}


def test_every_run_is_a_task(tmp_path: Path) -> None:
    environment = stub(tmp_path, f'echo "$*" >> {tmp_path}/log\n')
    script = str(ROOT / "scripts" / "sweep_table.sh")
    listed = subprocess.run(
        [script], env={**environment, "DRY_RUN": "1"}, capture_output=True, text=True, check=True
    )
    done = subprocess.run([script, "--slurm"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Submitted batch job" in done.stdout, done.stderr
    wait(lambda: not queue(), 120)
    ran = [line.split(" --threads")[0].strip() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(ran) == sorted(line.split(" ", 1)[1].strip() for line in listed.stdout.splitlines())
    assert len(list((tmp_path / "results" / "smoke" / "slurm").glob("sweep_table.*.log"))) == 16


def test_a_run_that_is_cut_off_goes_on_in_its_next_slot(tmp_path: Path) -> None:
    """SIGTERM to the batch script is what SLURM sends a minute before the time limit, and at a preemption."""
    environment = stub(
        tmp_path,
        f'echo "$SLURM_ARRAY_TASK_ID" >> {tmp_path}/log\n'
        f'if [ "$SLURM_ARRAY_TASK_ID" = 0 ] && [ $(grep -cx 0 {tmp_path}/log) = 1 ]; then\n'
        "  trap 'kill $!; exit 130' TERM; sleep 600 & wait; fi\n",
    )
    script = str(ROOT / "scripts" / "sweep_equal.sh")
    done = subprocess.run([script, "--slurm"], env=environment, capture_output=True, text=True, check=True)
    job = done.stdout.split()[-1]

    def log() -> list[str]:
        return (tmp_path / "log").read_text().split() if (tmp_path / "log").exists() else []

    try:
        wait(lambda: "0" in log(), 60)
        time.sleep(0.5)  # so that the stub listens
        subprocess.run(["scancel", "--signal=TERM", "--batch", f"{job}_0"], check=False)
        wait(lambda: not queue(), 400)  # SLURM lets a requeued job wait for two minutes
        assert sorted(log()) == sorted(["0", *(str(number) for number in range(8))])
    finally:
        subprocess.run(["scancel", job], check=False)
    text = (tmp_path / "results" / "smoke" / "slurm" / "sweep_equal.0.log").read_text()
    assert "cut off: queued again" in text
