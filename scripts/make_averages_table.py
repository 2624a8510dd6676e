#!/usr/bin/env python3
"""Annealed steps beside averaged weights: the test errors of either, of both and of neither.

Writes averages, .md, .tex and .csv, to OUT/STUDY, and prints it: of the runs of `averages` and of those of `peers` that
are the same but for annealing and averaging (scripts/sweep_averages.sh).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from make_tables import Column, Table, error_text, group_numbers, write_tables
from peer_study import AVERAGED, KEPT, METHODS, RARE, UNBIASED
from study import Group, caption_of, command_line, load_folder

from icassp25.config import WHERE_AND_HOW, RunConfig
from icassp25.peers import ACME
from icassp25.runlog import Run

FLAGS = tuple(AVERAGED)  # no_annealing, anneal_over, average_weights
WAYS = {
    "annealed": (False, 1.0, False),
    "neither": (True, 1.0, False),
    "both": (False, 1.0, True),
    "partly": tuple(AVERAGED.values()),
    "averaged": (True, 1.0, True),
}
"""By `FLAGS`."""


def without(config: RunConfig) -> RunConfig:
    """What is compared: the same for all seeds, places and ways."""
    plain = {name: getattr(RunConfig, name) for name in ("seed", *WHERE_AND_HOW)}
    return replace(config, **plain, **dict(zip(FLAGS, WAYS["annealed"], strict=True)))


def title_of(config: RunConfig) -> str:
    if config.optimizer != ACME:
        return METHODS[config.optimizer].title
    return (
        ("Adam" if config.adam else "SGD") + " + ACME" + ", step size kept" * (config.adapt_steps is not None)
    )


def averages_table(results: Path, name: str) -> Table:
    varied = frozenset({"optimizer", "lr", *KEPT, *RARE, *UNBIASED, *FLAGS})
    own, left_out = load_folder(results / name / "averages", varied)
    wanted = {without(run.config) for run in own}
    beside, _ = load_folder(results / name / "peers", varied | {"epochs"})
    runs: list[Run] = own + [run for run in beside if without(run.config) in wanted]
    cells, numbers = [], []
    for config in sorted(wanted, key=lambda one: (one.optimizer, one.adam, one.adapt_steps or 0, one.lr)):
        groups = {
            way: Group(
                run
                for run in runs
                if without(run.config) == config
                and tuple(getattr(run.config, flag) for flag in FLAGS) == flags
            )
            for way, flags in WAYS.items()
        }
        line = [error_text(group) for group in groups.values()]
        cells.append([title_of(config), f"{config.lr:g}", *line])
        numbers += [
            {"optimizer": title_of(config), "lr": config.lr, "way": way, **group_numbers(group)}
            for way, group in groups.items()
        ]
    kept = any(config.adapt_steps is not None for config in wanted)
    options = ", ".join(f"{option} {value:g}" for option, value in (KEPT if kept else RARE).items())
    return Table(
        "averages",
        [
            Column("Optimizer"),
            Column("start"),
            Column("annealed", "Test error, %", "Annealed steps"),
            Column("neither", "Test error, %", "Neither"),
            Column("both", "Test error, %", "Averaged and annealed"),
            Column("partly", "Test error, %", "Averaged, annealed to a quarter"),
            Column("averaged", "Test error, %", "Averaged, not annealed"),
        ],
        cells,
        "Annealed steps (ACME's own annealing, the cosine of SGD and AdamW), averaged weights (polynomial-decay average, in the "
        "tests only), neither, both, and averaged weights with an annealing that would take 1.5 times as long, so that steps end at a "
        "quarter: test error in % after the last epoch, mean ± standard deviation over seeds. The start is "
        f"the initial step size, or the learning rate; ACME with {options}, with Adam unbiased_squares. {caption_of(runs)}.",
        left_out,
        numbers,
    )


def work(results: Path, name: str, out: Path) -> None:
    write_tables([(averages_table(results, name), [])], name, out)


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
