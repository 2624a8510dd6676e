"""One process a run: a lock that holds on one machine, and among machines that share a folder.

Two things together, because neither is enough:

- `flock` on the lock file. The system gives it up when the process ends, however that ends, so on one machine a lock
  is never left behind. Between machines it holds on most shared file systems (NFS since version 4), but on some it
  holds on each machine for itself, and on some there is none.
- The file's text, which says who holds it, and its time, which the holder renews every `BEAT` seconds. Who finds the
  text of another machine watches for `STALE` seconds: if the file is renewed, the run is taken; if not, its holder is
  dead, and the lock is taken over. Only the watcher's clock counts, so the machines' need not agree.

So a lock left by a process that was killed is taken over at once on its own machine, and after `STALE` seconds
on another.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from icassp25.files import temporary

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BEAT = 10.0
STALE = 60.0
SETTLE = 3.0
"""Seconds between taking a lock over and finding that nobody else did."""
TAKEN = "another process is training this run"


class TakenElsewhere(Exception):
    """Another process is at work on the same run."""


def lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def machine() -> str:
    """This machine until its next start; two of one name are told apart."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}"


def look(name: Path) -> tuple[str, int] | None:
    """A lock file's text and its time in ns; None if there is none. Opening asks a file server anew."""
    try:
        with open(name) as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def flock(file: IO[str], shared: bool = False) -> bool:
    """Take the system's lock on the file; whether nobody has it, as far as the file system knows."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks
        return True
    return True


def is_locked(path: Path) -> bool:
    """Whether a process is training the run of this CSV."""
    name = lock_path(path)
    found = look(name)
    if found is None:
        return False
    with suppress(OSError), open(name) as file:
        if not flock(file, shared=True):
            return True
    if fcntl is not None and found[0].startswith(machine() + " "):
        return False
    return time.time() - found[1] / 1e9 < 2 * STALE


class Lock:
    """A run's lock, from `acquire` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = lock_path(path)
        self.text = f"{machine()} {os.getpid()} {uuid.uuid4().hex}\n"
        self.lost = False
        self._file: IO[str] | None = None
        self._over = threading.Event()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            TakenElsewhere: another process holds it.
            OSError: the folder cannot be written.
        """
        with temporary(self.name) as mine:
            self._file = open(mine, "w")  # noqa: SIM115 (its flock is kept until `release`)
            flock(self._file)
            self._file.write(self.text)
            self._file.flush()
            os.fsync(self._file.fileno())
            if fcntl is None:
                self._file.close()  # Windows renames no open file
            try:
                while not self._appear(mine) and not self._take_over(mine):
                    pass
            except BaseException:
                self._file.close()
                raise
        threading.Thread(target=self._renew, daemon=True).start()

    def release(self) -> None:
        self._over.set()
        found = look(self.name)
        if found is not None and found[0] == self.text:
            self.name.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()

    def taken(self) -> TakenElsewhere:
        found = look(self.name)
        holder = found[0].split() if found is not None else []
        who = f" (process {holder[1]} on {holder[0].split('/')[0]})" if len(holder) == 3 else ""
        return TakenElsewhere(f"{self.path}: {TAKEN}{who}.")

    def _appear(self, mine: Path) -> bool:
        """Give the file its name, text and flock and all, unless there is one."""
        try:
            os.link(mine, self.name)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                file = open(self.name, "x")  # noqa: SIM115
            except FileExistsError:
                return False
            flock(file)
            file.write(self.text)
            file.flush()
            assert self._file is not None
            self._file.close()
            self._file = file
        return True

    def _take_over(self, mine: Path) -> bool:
        """Put the file in the place of one that was left behind; False if that one has gone meanwhile."""
        try:
            file = open(self.name)  # noqa: SIM115
        except FileNotFoundError:
            return False
        with file:
            if not flock(file):
                raise self.taken()
            earlier = look(self.name)
            if earlier is None:
                return False
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(self.name)):
                return False
            here = fcntl is not None and earlier[0].startswith(
                machine() + " "
            )  # its process would hold the flock
            if not here and self._is_renewed(earlier):
                raise self.taken()
            os.replace(mine, self.name)
        if not here:
            time.sleep(SETTLE)  # of two machines that do this at once, the later has it
            found = look(self.name)
            if found is None or found[0] != self.text:
                raise self.taken()
        return True

    def _is_renewed(self, earlier: tuple[str, int]) -> bool:
        deadline = time.monotonic() + STALE
        while time.monotonic() < deadline:
            time.sleep(BEAT / 10)
            if look(self.name) != earlier:
                return True
        return False

    def _renew(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):  # of a file server that is away for a moment
                found = look(self.name)
                if found is None or found[0] != self.text:
                    # This process has stood still for so long that another machine took over.
                    self.lost = not self._over.is_set()
                    if self.lost:
                        _interrupt()
                    return
                os.utime(self.name)


def _interrupt() -> None:
    """Raise KeyboardInterrupt in the main thread."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # wakes it, too
    else:
        _thread.interrupt_main()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes, here or on machines that share the folder, from training the run of this CSV.

    Raises:
        TakenElsewhere: another process holds the lock, or has taken it over while this one stood still.
        OSError: the folder cannot be written.
    """
    lock = Lock(path)
    lock.acquire()
    try:
        yield
    except KeyboardInterrupt:
        if lock.lost:
            raise lock.taken() from None
        raise
    finally:
        lock.release()
