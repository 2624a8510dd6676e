"""The lock: on one machine, among several, and after its holder was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icassp25 import lock

ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import signal, socket, sys, time
from pathlib import Path
from icassp25 import lock

machine, hold = sys.argv[2], float(sys.argv[3])
lock.BEAT, lock.STALE = 0.2, 1.5
if machine:
    socket.gethostname = lambda: machine
signal.signal(signal.SIGINT, signal.default_int_handler)  # as the training does: it may be inherited as ignored
try:
    with lock.locked(Path(sys.argv[1])):
        print("holds", flush=True)
        time.sleep(hold)
except lock.TakenElsewhere as reason:
    print("taken", reason, flush=True)
"""


def holder(path: Path, machine: str = "", hold: float = 60) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path), machine, str(hold)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.csv"


def test_on_one_machine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.2)
    monkeypatch.setattr(lock, "STALE", 1.5)
    assert not lock.is_locked(path)
    first = holder(path)
    assert says(first) == "holds\n" and lock.is_locked(path)
    taken = pytest.raises(lock.TakenElsewhere, match=rf"is training this run \(process {first.pid} on ")
    with taken, lock.locked(path):
        raise AssertionError("held twice")
    end(first)
    assert not lock.is_locked(path) and lock.lock_path(path).exists()
    with lock.locked(path):  # taken over at once
        assert lock.is_locked(path)
    assert not list(path.parent.iterdir())


def test_among_machines(path: Path) -> None:
    first = holder(path, "one", hold=4)
    assert says(first) == "holds\n"
    second = holder(path, "two")
    assert says(second).startswith(
        f"taken {path}: another process is training this run (process {first.pid} on one)"
    )
    assert lock.is_locked(path)
    first.wait()
    assert not list(path.parent.iterdir())
    third = holder(path, "two", hold=0)
    assert says(third) == "holds\n"
    third.wait()


def test_what_a_killed_process_left_on_another_machine(path: Path) -> None:
    """Taken over once it has not been renewed for STALE seconds, by one of those that wait for it."""
    first = holder(path, "one")
    assert says(first) == "holds\n"
    end(first)
    start = time.monotonic()
    others = [holder(path, name, hold=8) for name in ("two", "three", "four")]
    said = sorted(says(other) for other in others)
    assert time.monotonic() - start > 1.5  # STALE
    assert [words.split()[0] for words in said] == ["holds", "taken", "taken"]
    end(*others)


def test_who_stood_still_for_too_long_gives_up(path: Path) -> None:
    first = holder(path, "one")
    assert says(first) == "holds\n"
    os.kill(first.pid, 19)  # SIGSTOP
    second = holder(path, "two")
    assert says(second) == "holds\n"
    os.kill(first.pid, 18)  # SIGCONT
    assert says(first).startswith(
        f"taken {path}: another process is training this run (process {second.pid} on two)"
    )
    assert first.wait() == 0 and second.poll() is None and lock.is_locked(path)
    end(second)


def test_many_at_once(path: Path) -> None:
    """Of those that begin together on several machines, exactly one goes on."""
    others = [holder(path, f"machine{number}", hold=6) for number in range(4)]
    said = sorted(says(other) for other in others)
    assert [words.split()[0] for words in said] == ["holds", "taken", "taken", "taken"]
    end(*others)
