"""The lock: on one machine, among several, and after its holder was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from icassp25 import lock

ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import signal, sys, time
from pathlib import Path
from icassp25 import lock

machine, shared, hold = sys.argv[2], sys.argv[3] == "shared", float(sys.argv[4])
lock.BEAT, lock.STALE, lock.SETTLE = 0.1, 1.0, 0.3
if machine:
    lock.machine = lambda: machine
if not shared:  # a file system that has no flock, or one on each machine
    lock.flock = lambda file, shared=False: True
signal.signal(signal.SIGINT, signal.default_int_handler)  # as the training does: it may be inherited as ignored
try:
    with lock.locked(Path(sys.argv[1])):
        print("holds", flush=True)
        time.sleep(hold)
except lock.TakenElsewhere as reason:
    print("taken", reason, flush=True)
"""
FLOCKS = ("shared", "each")


def holder(path: Path, machine: str = "", flock: str = "shared", hold: float = 60) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path), machine, flock, str(hold)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.csv"


def test_on_one_machine(path: Path) -> None:
    assert not lock.is_locked(path)
    first = holder(path)
    assert says(first) == "holds\n" and lock.is_locked(path)
    with pytest.raises(lock.TakenElsewhere, match=rf"is training this run \(process {first.pid} on "):
        lock.Lock(path).acquire()
    first.kill()
    first.wait()
    assert not lock.is_locked(path) and lock.lock_path(path).exists()
    start = time.monotonic()
    with lock.locked(path):  # taken over at once
        assert time.monotonic() - start < 0.5 and not list(path.parent.glob("*.tmp"))
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("flock", FLOCKS)
def test_among_machines(path: Path, flock: str) -> None:
    first = holder(path, "one/1", flock, hold=3)
    assert says(first) == "holds\n"
    second = holder(path, "two/2", flock)
    assert says(second).startswith(f"taken {path}: another process is training this run (process ")
    assert lock.is_locked(path)
    first.wait()
    assert not list(path.parent.iterdir())
    third = holder(path, "two/2", flock, hold=0)
    assert says(third) == "holds\n"
    third.wait()


@pytest.mark.parametrize("flock", FLOCKS)
def test_what_a_killed_process_left_on_another_machine(path: Path, flock: str) -> None:
    """Taken over once it has not been renewed for STALE seconds, by one of those that wait for it."""
    first = holder(path, "one/1", flock)
    assert says(first) == "holds\n"
    first.kill()
    first.wait()
    start = time.monotonic()
    others = [holder(path, f"{name}/2", flock, hold=5) for name in ("two", "three", "four")]
    said = [says(other) for other in others]
    assert time.monotonic() - start > 1  # STALE
    assert [words.split()[0] for words in sorted(said)] == ["holds", "taken", "taken"]
    for other in others:
        other.kill()
        other.wait()


def test_who_stood_still_for_too_long_gives_up(path: Path) -> None:
    first = holder(path, "one/1", "each")
    assert says(first) == "holds\n"
    os.kill(first.pid, 19)  # SIGSTOP
    second = holder(path, "two/2", "each")
    assert says(second) == "holds\n"
    os.kill(first.pid, 18)  # SIGCONT
    assert says(first).startswith("taken") and first.wait() == 0
    assert second.poll() is None and lock.is_locked(path)
    second.kill()
    second.wait()


def test_many_at_once(path: Path) -> None:
    """Of those that begin together, on machines that do not see each other's flock, exactly one goes on."""
    others = [holder(path, f"{number}/x", "each", hold=4) for number in range(4)]
    said = sorted(says(other) for other in others)
    assert [words.split()[0] for words in said] == ["holds", "taken", "taken", "taken"]
    for other in others:
        other.kill()
        other.wait()


def test_without_links_and_without_flock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(lock.fcntl, "flock", refused)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    with lock.locked(path):
        monkeypatch.setattr(lock, "machine", lambda: "other/0")
        with pytest.raises(lock.TakenElsewhere):
            lock.Lock(path).acquire()
    assert not list(path.parent.iterdir())


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="unshare needs root")
def test_a_machine_is_known_by_its_name_and_its_start() -> None:
    program = "from icassp25.lock import machine; print(machine())"
    other = subprocess.check_output(
        ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$0" -c "$1"', sys.executable, program],
        cwd=ROOT, text=True,
    ).strip()  # fmt: skip
    assert other.startswith("elsewhere/") and other != lock.machine()
    assert other.split("/")[1] == lock.machine().split("/")[1]
