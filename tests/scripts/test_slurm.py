"""The sweeps as job arrays, on a real SLURM: the one that `sbatch` reaches, else one of this machine alone, for which
slurm_cluster.sh needs root and Debian's slurm-wlm and munge. Skipped elsewhere.

`make test-slurm` runs the one that awaits a time limit as well (about three minutes).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from icassp25.runlog import read_run

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "tests" / "scripts" / "slurm_cluster.sh"
DAEMONS = ("munged", "slurmctld", "slurmd")


def reached() -> bool:
    """Whether there is a cluster with a node that takes jobs."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return False
    nodes = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False, timeout=60
    )
    return nodes.returncode == 0 and any(state in nodes.stdout for state in ("idle", "mixed", "allocated"))


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if reached():
        yield
        return
    lacking = [name for name in DAEMONS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if lacking:
        pytest.skip(f"no SLURM: sbatch reaches no node, and {', '.join(lacking)} is not installed")
    if os.geteuid() != 0:
        pytest.skip("no SLURM: sbatch reaches no node, and only root can start one")
    folder = tmp_path_factory.mktemp("slurm")
    # the daemons keep what they are given open: no pipe, whose end would be waited for
    started = subprocess.run([CLUSTER, "start", folder], stdin=subprocess.DEVNULL, check=False)
    assert started.returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield
    subprocess.run([CLUSTER, "stop", folder], check=True)


def queue() -> list[str]:
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def wait(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, queue()
        time.sleep(0.2)


def environment(folder: Path, python: str) -> dict[str, str]:
    """That in which a sweep calls this text in place of Python."""
    script = folder / "python"
    script.write_text(python)
    script.chmod(0o755)
    return {**os.environ, "PYTHON": str(script), "PRESET": "smoke", "RESULTS": str(folder / "results")}


def sweep_of(folder: Path, *runs: str) -> Path:
    """A sweep of a few runs."""
    script = folder / "sweep_few.sh"
    script.write_text(
        "\n".join(
            ["#!/usr/bin/env bash", f". {ROOT}/scripts/sweep.sh || exit", *(f"run {run}" for run in runs)]
        )
        + "\nreport\n"
    )
    script.chmod(0o755)
    return script


def submit(script: Path, environment: dict[str, str], *options: str) -> str:
    """Submit a sweep; the array's number."""
    done = subprocess.run(
        [script, "--slurm", *options], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "Submitted batch job" in done.stdout, done.stderr
    return done.stdout.split()[-1]


def output(folder: Path, job: str, task: int) -> str:
    """What SLURM caught of a task, over all its slots."""
    (path,) = (folder / "results" / "smoke" / "slurm").glob(f"*.{job}_{task}.log")
    return path.read_text()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_every_run_is_a_task(tmp_path: Path) -> None:
    stub = environment(
        tmp_path,
        f'#!/bin/bash\necho "$*" >> {tmp_path}/log\n'
        'case "$*" in *adam-asam.seed42*) echo the reason; exit 3;; esac\necho all went well\n',
    )
    script = ROOT / "scripts" / "sweep_table.sh"
    listed = subprocess.run(
        [script], env={**stub, "DRY_RUN": "1"}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    job = submit(script, {**stub, "JOBS": "2"})
    about = subprocess.check_output(["scontrol", "show", "job", job], text=True)
    assert "TimeLimit=00:10:00" in about and "Requeue=1" in about and "ArrayTaskThrottle=2" in about
    wait(lambda: not queue(), 120)
    ran = [line.split(" --threads")[0].strip() for line in lines(tmp_path / "log")]
    assert sorted(ran) == sorted(line.split(" ", 1)[1].strip() for line in listed)
    folder = tmp_path / "results" / "smoke" / "table"
    assert (folder / "sgd.seed42.log").read_text() == "all went well\n"
    assert output(tmp_path, job, 0) == "all went well\n"
    failed = next(number for number, line in enumerate(listed) if "adam-asam.seed42" in line)
    assert "FAILED (exit code 3)" in output(tmp_path, job, failed)
    assert "   the reason" in output(tmp_path, job, failed)
    status = subprocess.run(
        [ROOT / "scripts" / "status.sh"],
        env={**stub, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "adam-asam.seed42.csv: the reason" in status.stdout


def test_a_task_that_is_told_to_stop_goes_on_in_its_next_slot(tmp_path: Path) -> None:
    """SIGTERM to the batch script is what SLURM sends before the time limit, and at a preemption. One that is
    cancelled stays so, and one that never gets as far as an epoch is given up."""
    stub = environment(
        tmp_path,
        f"#!/bin/bash\nnumber=$SLURM_ARRAY_TASK_ID; echo $number >> {tmp_path}/log\n"
        f"if [ $number = 3 ]; then echo done; exit; fi\n"
        f"if [ $number = 0 ] && [ $(grep -cx 0 {tmp_path}/log) = 2 ]; then echo done; exit; fi\n"
        f"trap 'kill $!; exit 130' TERM; sleep 600 & touch {tmp_path}/$number.$SLURM_RESTART_COUNT; wait\n",
    )
    script = sweep_of(tmp_path, *(f"table/{name} --seed 1" for name in "abcd"))
    job = submit(script, stub, "--time=5")
    try:
        told: set[str] = set()

        def tell(task: int, *signal: str) -> None:
            """Once a slot, when the stub listens."""
            for path in tmp_path.glob(f"{task}.*"):
                if path.name not in told:
                    told.add(path.name)
                    time.sleep(0.3)
                    # It may say after the signal that this is no time for it, and goes on to repeat it.
                    with suppress(subprocess.TimeoutExpired):
                        subprocess.run(["scancel", *signal, f"{job}_{task}"], check=False, timeout=2)

        def over() -> bool:
            tell(0, "--signal=TERM", "--batch")
            tell(1)
            tell(2, "--signal=TERM", "--batch")
            return not queue()

        wait(over, 700)  # where a requeued job waits for two minutes, as by default
    finally:
        subprocess.run(["scancel", job], check=False)
    counts = {number: lines(tmp_path / "log").count(number) for number in "0123"}
    assert counts == {"0": 2, "1": 1, "2": 4, "3": 1}
    assert output(tmp_path, job, 0).endswith("cut off: queued again\ndone\n")
    assert "queued again" not in output(tmp_path, job, 1)
    assert output(tmp_path, job, 2).count("queued again") == 3
    assert "cut off before its first epoch" in output(tmp_path, job, 2)


SLOW = """#!{python}
import runpy, sys, time

sys.argv = sys.argv[1:]
sys.path.insert(0, ".")
from icassp25.train import Experiment

epoch = Experiment.epoch
Experiment.epoch = lambda self, number: (time.sleep({pause}), epoch(self, number))[1]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif("SLURM_TESTS" not in os.environ, reason="three minutes long: make test-slurm runs it")
def test_a_run_that_outlasts_its_time_limit_is_that_of_one_slot(tmp_path: Path) -> None:
    """The same numbers, the seconds aside; an epoch takes eight seconds, so that a slot ends in a run."""
    runs = [
        "table/sgd-acme --seed 42 --lr 0.1 --epochs 16 --acme",
        "table/adam-asam --seed 42 --lr 0.001 --epochs 16 --adam --asam",
    ]
    script = sweep_of(tmp_path, *runs)
    slow = environment(tmp_path, SLOW.format(python=sys.executable, pause=8))
    job = submit(script, slow, "--time=2", "--signal=B:TERM@10")
    whole = tmp_path / "whole"
    whole.mkdir()
    fast = environment(whole, SLOW.format(python=sys.executable, pause=0))
    subprocess.run([script], env=fast, check=True, capture_output=True)
    try:
        wait(lambda: not queue(), 900)
    finally:
        subprocess.run(["scancel", job], check=False)
    for task, name in enumerate(("sgd-acme", "adam-asam")):
        assert "cut off: queued again" in output(tmp_path, job, task)
        path = Path("results") / "smoke" / "table" / f"{name}.csv"
        log = (tmp_path / path).with_suffix(".log").read_text()
        assert "interrupted: --resume goes on" in log and "resumed after epoch" in log
        cut, uncut = (read_run(folder / path).frame.drop(columns="seconds") for folder in (tmp_path, whole))
        assert len(cut) == 16
        pd.testing.assert_frame_equal(cut, uncut, check_exact=True)
    assert not list(tmp_path.glob("results/smoke/table/*.checkpoint"))
