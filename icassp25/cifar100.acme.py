#!/usr/bin/env python3
"""Train a WRN or a PyramidNet on CIFAR-100, a transformer on text or an MLP on digits, with ACME, one of its 16
combinations or a peer, and leave a CSV."""

import argparse
import contextlib
import ctypes
import platform
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from icassp25 import lock, ranks, runlog
from icassp25.config import RunConfig, UsageError, add_options
from icassp25.files import print_what_can_be_said

TAKEN_ELSEWHERE = 75  # exit code; sysexits.h's EX_TEMPFAIL: try again later
GO_ON = "the same command with --resume goes on from the last finished epoch."
LOST = f"cifar100.acme.py: a process of this run died, or does not answer; {GO_ON}"
STOPPED = f"cifar100.acme.py: interrupted, or ended because a process of this run died; {GO_ON}"


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong, with exit code 2; of several processes, in one."""

    def error(self, message: str) -> NoReturn:
        ranks.leave(2, f"{self.prog}: {message.rstrip('.')}.")

    def print_help(self, file=None) -> None:
        if ranks.is_first():
            super().print_help(file)


def parse(arguments: list[str] | None = None) -> RunConfig:
    """The configuration that the command line asks for; config.py says what the options are."""
    parser = Parser(prog="cifar100.acme.py", description=__doc__)
    add_options(parser)
    given = vars(parser.parse_args(arguments))
    config = RunConfig(**given)
    if config.find_lr and given["lr"] is not None:
        parser.error(f"--find-lr: expected no --lr {config.lr:g} beside it")
    try:
        config.check()
        ranks.check(config)
    except UsageError as error:
        parser.error(str(error))
    return config


def on_signals(what: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, what)


def interrupt(number: int, frame: object) -> NoReturn:
    """Once: a terminal's Ctrl-C reaches the run, and the sweep around it, which stops its runs as well."""
    on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    print_what_can_be_said()
    config = parse()
    path = runlog.csv_path(config.output) if config.output else Path("results/runs") / f"{config.name}.csv"
    on_signals(interrupt)  # also where they are inherited as ignored, as from a shell script's background
    ranks.end_when_told(STOPPED)
    try:
        try:
            with ranks.joined(config.device) as together:
                train(config, path, together)
        except lock.TakenElsewhere as error:
            ranks.leave(TAKEN_ELSEWHERE, f"cifar100.acme.py: {error}")
        except UsageError as error:
            ranks.leave(2, f"cifar100.acme.py: {error}")
        except ranks.Lost as error:
            end_early(f"{LOST}\n({error})", 1)
        ranks.leave(0)
    except KeyboardInterrupt:  # also in the lines above: torchrun ends the others when one has died
        if ranks.processes() > 1:
            end_early(STOPPED, 130)
        print("interrupted: --resume goes on from the last finished epoch", file=sys.stderr)
        sys.exit(130)


def end_early(message: str, code: int) -> NoReturn:
    """End one of several processes; `message` is said once."""
    on_signals(signal.SIG_IGN)
    ranks.say_once(message)
    ranks.end(code)


def train(config: RunConfig, path: Path, together: ranks.Ranks) -> None:
    """Train, unless that is done: the first process looks, and holds the run's lock."""
    with contextlib.ExitStack() as held:

        def finished() -> bool:
            if runlog.settled(path, config):
                return True
            runlog.check_writable(path)
            held.enter_context(lock.locked(path))
            return runlog.settled(path, config)  # by the process that held the lock

        if together.decided(finished):
            if together.first:
                print(f"already finished: {path}")
            return
        keep_freed_memory()
        from icassp25.train import run  # imports torch: only once there is something to do

        run(config, path, together)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: a step on the CPU frees its activations and asks for as many in the next.

    Given back to the system, they come back page by page, a tenth of a step's time. Where the C library is
    another, nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
        for parameter in (trim_threshold, mmap_threshold):
            ctypes.CDLL(None).mallopt(parameter, 2**30)


if __name__ == "__main__":
    main()
