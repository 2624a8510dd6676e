"""One process a run, here and among machines that share a folder: filelock's lease, a file beside the CSV.

Its holder renews the file every `BEAT` seconds. The lock of a process that was killed is taken over at once on
its own machine; on another, once it has not been renewed for `STALE` seconds by the watcher's own clock.

filelock waits for a lock as long as its holder lives. What it does not do is here: give up as soon as the holder
is known to live, say who that is, end the training that lost its lock, and look without taking (`is_locked`).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

BEAT = 10.0
STALE = 60.0
TAKEN = "another process is training this run"


class TakenElsewhere(Exception):
    """Another process is at work on the same run."""


def lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def is_locked(path: Path) -> bool:
    """Whether a process is training the run of this CSV."""
    owner, renewed = _lease(path).owner, _renewed(path)
    if owner is None or renewed is None:
        return False
    if owner.hostname != socket.gethostname():
        return time.time() - renewed / 1e9 < 2 * STALE
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user's process
        pass
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes, here or on machines that share the folder, from training the run of this CSV.

    Raises:
        TakenElsewhere: another process holds the lock, or has taken it over while this one stood still.
        OSError: the folder cannot be written.
    """
    lost = threading.Event()
    lease, first = _lease(path, lost), _renewed(path)

    def holder_lives() -> bool:
        owner = lease.owner  # here a dead one's lock would have been taken over
        here = owner is not None and owner.hostname == socket.gethostname()
        return here or _renewed(path) not in (None, first)

    try:
        lease.acquire(timeout=2 * STALE, poll_interval=BEAT / 10, cancel_check=holder_lives)
    except Timeout:
        raise _taken(path, lease) from None
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise _taken(path, lease) from None
        raise
    finally:
        lease.release()


def _lease(path: Path, lost: threading.Event | None = None) -> SoftFileLease:
    def give_up(_: object) -> None:
        if lost is not None:
            lost.set()
            os.kill(os.getpid(), signal.SIGINT)  # reaches the main thread, and wakes it

    return SoftFileLease(
        lock_path(path), lease_duration=STALE, heartbeat_interval=BEAT, on_compromise=give_up
    )


def _renewed(path: Path) -> int | None:
    """When the lock was renewed, in ns by the file server's clock; None where there is none."""
    with suppress(FileNotFoundError), open(lock_path(path)) as file:  # opening asks a file server anew
        return os.fstat(file.fileno()).st_mtime_ns
    return None


def _taken(path: Path, lease: SoftFileLease) -> TakenElsewhere:
    owner = lease.owner
    who = f" (process {owner.pid} on {owner.hostname})" if owner is not None else ""
    return TakenElsewhere(f"{path}: {TAKEN}{who}.")
