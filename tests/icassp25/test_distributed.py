"""One run in several processes: the numbers of one process, one CSV, and how the processes end together."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from icassp25 import augment, data, lock, ranks, train
from icassp25.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "icassp25" / "cifar100.acme.py"
IN_PROCESSES = Path(__file__).with_name("in_processes.py")
TINY = RunConfig(
    dataset="synthetic",
    train_images=100,
    batch_size=10,
    depth=4,
    width_alpha=1,
    epochs=1,
    device="cpu",
    threads=1,
)
EXACT = replace(TINY, precision="float64")
MODES = {
    "acme-adam-nesterov": replace(EXACT, acme=True, adam=True, nesterov=True, lr=1e-3),
    "acme-asam": replace(EXACT, acme=True, asam=True),
    "all": replace(EXACT, acme=True, adam=True, asam=True, nesterov=True, lr=1e-3),
    "adam": replace(EXACT, adam=True, lr=1e-3, validation=100),
    "pyramid": replace(EXACT, acme=True, model="Pyramid", depth=8, width_alpha=6),
    "text": replace(
        EXACT,
        acme=True,
        adam=True,
        lr=1e-3,
        dataset="text",
        model="transformer",
        depth=1,
        width_alpha=8,
        train_images=40,
    ),
    "digits": replace(EXACT, acme=True, dataset="digits", model="MLP", width_alpha=16, validation=100),
}


# Killed and resumed, in test_a_process_that_dies; dropout, whose masks differ from process to process.
KILLED = replace(TINY, train_images=100, epochs=5, acme=True, adam=True, lr=1e-3, dropout=0.3)
TEST_IMAGES = 100  # as in in_processes.py
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def started(processes: int, *arguments: str) -> subprocess.Popen:
    """in_processes.py under torchrun, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
         f"--nproc-per-node={processes}", str(IN_PROCESSES), *arguments],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def options(config: RunConfig, *more: str) -> list[str]:
    """`config` as command line options."""
    default, parts = asdict(RunConfig()), list(more)
    for name, value in asdict(config).items():
        if value != default[name]:
            parts += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return parts


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def without_seconds(path: Path) -> list[dict[str, str]]:
    return [{name: text for name, text in row.items() if name != "seconds"} for row in rows(path)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs in two processes: of `MODES`, and of KILLED left alone."""
    folder = tmp_path_factory.mktemp("two")
    runs = {name: asdict(config) for name, config in {**MODES, "killed": KILLED}.items()}
    process = started(2, "runs", str(folder), json.dumps(runs))
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert output.count("finished:") == len(runs), "one process speaks"
    return folder


@pytest.mark.parametrize("name", MODES)
def test_two_processes_are_one(name: str, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch in float64: the same decisions; step sizes, losses and errors up to rounding."""
    monkeypatch.setattr(data, "SYNTHETIC_TEST_IMAGES", TEST_IMAGES)
    alone = tmp_path / "alone.csv"
    train.run(MODES[name], alone)
    ((expected,), (got,)) = rows(alone), rows(two / f"{name}.csv")
    assert expected.keys() == got.keys()
    for column in expected.keys() - {"seconds"}:
        if column == "step_size" or column.endswith("_loss"):
            assert float(got[column]) == pytest.approx(float(expected[column]), rel=1e-9), column
        else:
            assert got[column] == expected[column], column
    about = json.loads((two / f"{name}.json").read_text())
    assert about["processes"] == 2 and about["device"].startswith("2 × CPU") and about["finished"]
    assert json.loads(alone.with_suffix(".json").read_text())["processes"] == 1


def process_of(rank: int, torchrun: int) -> int:
    """The process id of a rank."""
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"rank {rank} does not run")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_a_process_that_dies(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in turn, the one that writes first: the others end at once and say how to go on; so it goes on,
    bit for bit in two processes, and also in one."""
    path = tmp_path / "run.csv"
    for victim in (0, 1):
        process = started(2, "script", *options(KILLED, "--resume", "--output", str(path)))
        before = len(rows(path)) if path.exists() else 0
        while not path.exists() or len(rows(path)) == before:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        os.kill(process_of(victim, process.pid), signal.SIGKILL)
        killed = time.monotonic()
        _, errors = process.communicate(timeout=900)
        assert time.monotonic() - killed < 60
        assert process.returncode != 0
        (said,) = [line for line in errors.splitlines() if line.startswith("cifar100.acme.py: ")]
        assert "a process of this run died" in said and "the same command with --resume goes on" in said
        assert 1 <= len(rows(path)) < 5
        assert json.loads(path.with_suffix(".json").read_text())["status"] == "running"
        assert not lock.is_locked(path)

    in_one = tmp_path / "in_one.csv"
    for suffix in (".csv", ".json", ".checkpoint"):
        shutil.copy(path.with_suffix(suffix), in_one.with_suffix(suffix))
    process = started(2, "script", *options(KILLED, "--resume", "--output", str(path)))
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert "resumed after epoch" in output
    assert without_seconds(path) == without_seconds(two / "killed.csv")

    done = len(rows(in_one))
    monkeypatch.setattr(data, "SYNTHETIC_TEST_IMAGES", TEST_IMAGES)
    train.run(replace(KILLED, resume=True), in_one)
    assert without_seconds(in_one)[:done] == without_seconds(path)[:done]
    assert len(rows(in_one)) == 5
    assert json.loads(in_one.with_suffix(".json").read_text())["processes"] == 1


def test_what_is_finished_and_what_is_refused(two: Path) -> None:
    """Said once; torchrun itself ends with 0 or 1."""
    path = two / "killed.csv"
    before = path.read_bytes()
    process = started(2, "script", *options(KILLED, "--resume", "--output", str(path)))
    output, errors = process.communicate(timeout=900)
    assert (process.returncode, output) == (0, f"already finished: {path}\n"), errors
    process = started(2, "script", *options(KILLED, "--output", str(path)))
    output, errors = process.communicate(timeout=900)
    assert (process.returncode, output) == (1, "")
    assert errors.count("holds this run, finished; choose another name") == 1
    assert "exitcode  : 2" in errors
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TINY, "--batch-size 10 with 3 processes: expected a multiple of 3."),
        (replace(TINY, batch_size=30, compile=True), "--compile with 3 processes"),
        (replace(TINY, batch_size=30, device="cuda:0"), "--device cuda:0 with 3 processes"),
    ],
)
def test_options_that_do_not_fit_several_processes(config: RunConfig, said: str, tmp_path: Path) -> None:
    """One sentence and exit code 2, before anything is joined or loaded."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options(config, "--output", str(tmp_path / "x.csv"))],
        env={**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "3"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert said in line and line.endswith(".")
    assert not list(tmp_path.iterdir())


def test_a_process_stuck_outside_python_ends_when_told() -> None:
    """As one that waits on a GPU for a process that is dead: no Python code of its main thread runs any more."""
    stuck = """
import ctypes, signal, sys
from icassp25 import ranks
def interrupt(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, interrupt)
ranks.GRACE_SECONDS = 0.1
ranks.end_when_told("go on with --resume")
mutex = ctypes.create_string_buffer(64)
print("ready", flush=True)
for _ in range(2):  # the second waits for ever
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", stuck], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "2"},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "go on with --resume\n")


def test_masks_differ_from_process_to_process() -> None:
    """Dropout draws from torch's generators, seeded by seed, epoch and rank; one process keeps its generator."""
    drawn = {}
    for key in [(1, 1, 0), (1, 1, 1), (1, 2, 0), (2, 1, 0)]:
        seed, epoch, rank = key
        for _ in range(2):
            ranks.Ranks(rank, 2).seed(seed, epoch)
            drawn.setdefault(key, []).append(torch.rand(4).tolist())
    assert all(first == again for first, again in drawn.values())
    assert len({tuple(first) for first, _ in drawn.values()}) == 4
    state = torch.get_rng_state()
    ranks.ALONE.seed(1, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_shares_of_the_augmentation() -> None:
    """Each process transforms its part of every batch, with the numbers drawn for the whole."""
    images = torch.randint(
        256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    generators = [torch.Generator().manual_seed(2) for _ in range(4)]
    whole = augment.augment(images, mean, std, generators[0])
    shares = [ranks.Ranks(rank, 3).share(24, 12) for rank in range(3)]
    assert [share.tolist() for share in shares] == [
        [0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 16, 17, 18, 19], [8, 9, 10, 11, 20, 21, 22, 23]
    ]  # fmt: skip
    for share, generator in zip(shares, generators[1:], strict=True):
        assert torch.equal(augment.augment(images, mean, std, generator, share), whole[share])
        assert torch.equal(generator.get_state(), generators[0].get_state())
