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
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from icassp25 import lock, ranks, runlog
from icassp25.config import DATASETS, MODELS, PRECISIONS, RunConfig, UsageError
from icassp25.peers import OPTIMIZERS

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
    default = RunConfig()
    parser = Parser(prog="cifar100.acme.py", description=__doc__)

    def option(name: str, help: str, *also: str, **kwargs) -> None:
        value = getattr(default, name[2:].replace("-", "_"))
        kwargs.setdefault("default", value)
        if value is not None and value is not False and "(default" not in help:
            help += " (default: %(default)s)"
        parser.add_argument(name, *also, help=help, **kwargs)

    def switch(name: str, help: str) -> None:
        option(name, help, action="store_true")

    option("--data-dir", "folder that holds cifar-100-python/ (default: $CIFAR100_ROOT, else ./data, "
           "where it is downloaded to if missing)", "--data", metavar="DIR")  # fmt: skip
    option(
        "--batch-size",
        "images (of a text: windows) a step; the last incomplete batch is dropped",
        type=int,
        metavar="N",
    )
    option(
        "--model",
        "network (default: WRN, of the text transformer, of the digits MLP)",
        choices=MODELS,
        default=None,
    )
    option("--depth", "layers; of an MLP, hidden ones (default: 16 for WRN, 110 for Pyramid, 2 for transformer and MLP)",
           type=int, default=None, metavar="N")  # fmt: skip
    option("--width-alpha", "WRN's widening factor, PyramidNet's alpha, or the width (default: 8 for WRN, 40 for Pyramid, "
           "64 for transformer and MLP)", type=int, default=None, metavar="N")  # fmt: skip
    switch("--bottleneck", "PyramidNet with bottleneck blocks")
    option("--dropout", "dropout probability inside WRN's blocks or the transformer", type=float, metavar="P")
    option("--epochs", "passes over the training images", type=int, metavar="N")
    option("--lr", "initial step size, or what scales the optimizer instead (default: 0.1, or the optimizer's own)",
           type=float, default=None, metavar="X")  # fmt: skip
    option("--label-smoothing", "in the training and the test loss", type=float, metavar="X")
    option("--momentum", "beta1; beta2 is always 0.999", type=float, metavar="X")
    option("--threads", "CPU threads for data and, on the CPU, training", type=int, metavar="N")
    option("--rho", "radius of ASAM's neighbourhood", type=float, metavar="X")
    option("--eta", "added to the weights' magnitudes in ASAM", type=float, metavar="X")
    option("--weight-decay", "decoupled weight decay", type=float, metavar="X")
    option("--acme-script", "package the optimizer is imported from", metavar="NAME")
    switch("--acme", "adapt the step size (one more evaluation a step, no scheduler)")
    switch("--asam", "adaptive sharpness-aware minimisation (one more evaluation a step)")
    switch("--adam", "Adam's element-wise scaling, with bias correction")
    switch("--nesterov", "Nesterov momentum")
    option("--gain", "factor on every step with --acme; 1 is the published algorithm",
           type=float, metavar="X")  # fmt: skip
    option("--adapt-steps", "look ahead in the first N steps with --acme, then keep the step size (default: in all, as in "
           "the published algorithm)", type=int, metavar="N")  # fmt: skip
    option("--search-steps", "at most N first steps with --acme only look for the step size to start from; 0 is the "
           "published algorithm", type=int, metavar="N")  # fmt: skip
    switch("--unbiased-squares", "with --adam, begin the squared average where bias correction expects it; off is the "
           "published algorithm")  # fmt: skip
    switch("--no-annealing", "steps are not annealed: neither by ACME nor, without it, by the cosine")
    option("--anneal-over", "annealing takes X times as long as the training, which ends before it is over",
           type=float, metavar="X")  # fmt: skip
    switch(
        "--average-weights",
        "test at the polynomial-decay average of the weights that the steps passed through",
    )
    option("--optimizer", "acme, with the switches above, or one of its peers as its authors use it, from its own "
           "package", choices=OPTIMIZERS)  # fmt: skip
    option("--wandb", "also log to Weights & Biases under this run name", metavar="NAME")
    option("--seed", "of weights, sampling, augmentation and dropout", type=int, metavar="N")
    option("--device", "auto, cpu, cuda, cuda:1, …", metavar="NAME")
    option(
        "--precision",
        "float32, tf32 (GPU), bfloat16 autocast, or float64 for exact comparison",
        choices=PRECISIONS,
    )
    switch("--compile", "compile the network and the arithmetic of Acme with torch.compile")
    option("--dataset", "synthetic: a built-in set of 100 classes, for machines without the data; text and digits: "
           "two other tasks, see docs/tasks.md", choices=tuple(DATASETS))  # fmt: skip
    option(
        "--train-images",
        "a stratified subset of N training images; of a text, its first N windows",
        type=int,
        metavar="N",
    )
    option("--limit-train-batches", "end each epoch after this share of its batches, drawn anew every time; 1 for all of "
           "them", type=float, metavar="X")  # fmt: skip
    option("--validation", "hold N training images out, for choosing anything", type=int, metavar="N")
    option("--output", "the run's CSV; its JSON stands beside it (default: results/runs/, named after the options)",
           metavar="FILE")  # fmt: skip
    switch("--resume", "go on after an interruption; do nothing if the run is finished")
    config = RunConfig(**vars(parser.parse_args(arguments)))
    try:
        config.check()
        ranks.check(config)
    except UsageError as error:
        parser.error(str(error))
    return config


def interrupt(number: int, frame: object) -> NoReturn:
    """Once: a terminal's Ctrl-C reaches the run, and the sweep around it, which stops its runs as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    config = parse()
    path = runlog.csv_path(config.output) if config.output else Path("results/runs") / f"{config.name}.csv"
    # Also where they are inherited as ignored, as by what a shell script starts in the background.
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
