#!/usr/bin/env python3
"""The tables of `gain`, `adapt_steps` and `search_steps`: what each costs in gradient evaluations, and the test error
it ends with.

Writes gain (one length of training), length (several) and variants (research/), .md, .tex and .csv, to OUT/STUDY, as
far as there are runs of them, and prints them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from make_tables import Column, Table, count_text, error_text, group_numbers, write_tables
from peer_study import AVERAGED
from study import Group, UsageError, caption_of, command_line, load_folder

from icassp25.config import RunConfig

VARIED = frozenset(
    {
        "gain",
        "adapt_steps",
        "adapt_every",
        "search_steps",
        "unbiased_squares",
        "epochs",
        "acme_script",
        *AVERAGED,
    }
)


def averages_text(constant: bool, over: float, averaged: bool) -> str:
    """What `no_annealing`, `anneal_over` and `average_weights` add to a title."""
    text = ", no annealing" if constant else f", annealed over {over:g}" if over != 1 else ""
    return text + ", averaged weights" * averaged


FOLDERS = {
    "gain": "ACME with a factor on its steps (gain), looking ahead {cheap} and with a search for the start (search_steps)",
    "length": "The same options in trainings of several lengths",
    "variants": "Variants of ACME that were tried (research/)",
}


CHEAP = {"adapt_every": "rarely (adapt_every)", "adapt_steps": "in the first steps only (adapt_steps)"}


def key(config: RunConfig) -> tuple[object, ...]:
    """What makes a row, in the order of the rows: epochs, the optimizer and its base, its options, its start."""
    options = config.gain, config.adapt_every, config.adapt_steps or 0, config.search_steps
    base = config.acme, config.adam, config.unbiased_squares
    averages = config.no_annealing, config.anneal_over, config.average_weights
    return config.epochs, *base, *averages, *options, config.lr, config.acme_script


def gain_table(results: Path, name: str, folder: str = "gain") -> Table:
    runs, left_out = load_folder(results / name / folder, VARIED)
    beside = any(not run.config.acme for run in runs)
    kept = any(run.config.adapt_steps is not None for run in runs)
    rare = not kept or any(
        run.config.adapt_every != 1 for run in runs
    )  # in runs made before there was `adapt_steps`
    names = ["adapt_every"] * rare + ["adapt_steps"] * kept
    cells, numbers = [], []
    for one in sorted({key(run.config) for run in runs}):
        group = Group(run for run in runs if key(run.config) == one)
        epochs, acme, adam, unbiased, constant, over, averaged, gain, every, steps, search, lr, script = one
        cheap = {"adapt_every": every, "adapt_steps": steps or None}
        title = ("Adam" if adam else "SGD") + " + ACME" * bool(acme) + ", unbiased squares" * bool(unbiased)
        title += averages_text(bool(constant), over, bool(averaged))
        if script != RunConfig.acme_script:
            title += f", {str(script).rpartition('.')[2]}"
        evaluations, step_size = group.mean_last("evaluations"), group.mean_last("step_size")
        cells.append(
            [
                title,
                f"{gain:g}" if acme else "—",
                *(f"{cheap[name] or 'all'}" if acme else "—" for name in names),
                f"{search}" if acme else "—",
                f"{lr:g}",
                f"{epochs}",
                count_text(evaluations),
                f"{step_size:.3g}" if step_size is not None else "—",
                error_text(group),
                str(len(group.seeds)),
            ]
        )
        numbers.append(
            {
                "optimizer": title,
                "gain": gain,
                **{name: cheap[name] for name in names},
                "search_steps": search,
                "lr": lr,
                "epochs": epochs,
            }
            | {"step_size": step_size}
            | group_numbers(group)
        )
    return Table(
        folder,
        [
            Column("Optimizer"),
            Column("gain"),
            *map(Column, names),
            Column("search_steps"),
            Column("start"),
            Column("Epochs"),
            Column("Evaluations"),
            Column("last step size"),
            Column("Test error, %"),
            Column("Seeds"),
        ],
        cells,
        f"{FOLDERS[folder].format(cheap=' or '.join(CHEAP[name] for name in names))}{', beside SGD with a cosine' * beside}: gradient evaluations of a run, the step size at its end "
        "and the test error after the last epoch. The start is the initial step size"
        f"{'; the learning rates of SGD are not chosen by anything here' * beside}. {caption_of(runs)}.",
        left_out,
        numbers,
    )


def work(results: Path, name: str, out: Path) -> None:
    there = [folder for folder in FOLDERS if (results / name / folder).is_dir()]
    if not there:
        raise UsageError(
            f"{results / name} holds none of {', '.join(FOLDERS)}; scripts/sweep_gain.sh makes the first."
        )
    write_tables([(gain_table(results, name, folder), []) for folder in there], name, out)


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
