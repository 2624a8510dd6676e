#!/usr/bin/env python3
"""The table of `gain` and `adapt_every`: what each costs in gradient evaluations, and the test error it ends with.

Writes gain, .md, .tex and .csv, to OUT/STUDY, and prints it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from make_tables import Column, Table, count_text, error_text, group_numbers, write_tables
from study import Group, caption_of, command_line, load_folder

from icassp25.config import RunConfig

VARIED = frozenset({"gain", "adapt_every", "epochs"})


def key(config: RunConfig) -> tuple[object, ...]:
    """What makes a row, in the order of the rows: the optimizer and its base, gain, interval, start, epochs."""
    return config.acme, config.adam, config.gain, config.adapt_every, config.lr, -config.epochs


def gain_table(results: Path, name: str) -> Table:
    runs, left_out = load_folder(results / name / "gain", VARIED)
    cells, numbers = [], []
    for one in sorted({key(run.config) for run in runs}):
        group = Group(run for run in runs if key(run.config) == one)
        acme, adam, gain, every, lr, epochs = one
        title = ("Adam" if adam else "SGD") + " + ACME" * bool(acme)
        evaluations, step_size = group.mean_last("evaluations"), group.mean_last("step_size")
        cells.append(
            [
                title,
                f"{gain:g}" if acme else "—",
                f"{every}" if acme else "—",
                f"{lr:g}",
                f"{-epochs}",
                count_text(evaluations),
                f"{step_size:.3g}" if step_size is not None else "—",
                error_text(group),
                str(len(group.seeds)),
            ]
        )
        numbers.append(
            {"optimizer": title, "gain": gain, "adapt_every": every, "lr": lr, "epochs": -epochs}
            | {"step_size": step_size}
            | group_numbers(group)
        )
    return Table(
        "gain",
        [
            Column("Optimizer"),
            Column("gain"),
            Column("adapt_every"),
            Column("start"),
            Column("Epochs"),
            Column("Evaluations"),
            Column("last step size"),
            Column("Test error, %"),
            Column("Seeds"),
        ],
        cells,
        "ACME with a factor on its steps (gain) and looking ahead rarely (adapt_every), beside SGD with a cosine: gradient "
        "evaluations of a run, the step size at its end and the test error after the last epoch. The start is the initial "
        f"step size; SGD's learning rates are not chosen by anything here. {caption_of(runs)}.",
        left_out,
        numbers,
    )


def work(results: Path, name: str, out: Path) -> None:
    write_tables([(gain_table(results, name), [])], name, out)


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
