#!/usr/bin/env python3
"""ACME beside its peers on several tasks at once, of the studies named: one table and one figure, in OUT/peers."""

import sys
from pathlib import Path

from study.beside_peers import Peers, overview_table
from study.command import command_line
from study.looks import save
from study.peer_figures import plot_overview

TASKS = {"cifar100": "CIFAR-100"}  # data sets that are written in another way


def work(results: Path, studies: list[str], out: Path) -> None:
    by_task = {}
    for name in studies:
        peers = Peers(results, name)
        dataset = peers.runs[0].config.dataset
        task = TASKS.get(dataset, dataset)
        by_task[task if task not in by_task else f"{task} ({name})"] = peers
    table = overview_table(by_task)
    table.write(out, "peers")
    save(plot_overview(by_task), out, table.name)
    print(table)


if __name__ == "__main__":
    sys.exit(command_line(__doc__, work, together="peers"))
