#!/usr/bin/env python3
"""One self-contained page of a study: its tables, its figures, how each run was made, and in what environment.

Writes report.html to OUT/STUDY, from the CSVs and JSONs of the study and the PNGs that are in OUT/STUDY already.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

import make_peer_tables
from make_tables import Table, tables_of
from peer_study import load_peers
from study import UsageError, command_line, read_study, write_whole

from icassp25.config import RunConfig
from icassp25.runlog import Run

FIGURES = {
    "peers_robustness": "Beside peers: test error after the last epoch against the scale, in multiples of each default.",
    "peers_price": "Beside peers: test error against what it cost, untuned and tuned.",
    "peers_budget": "Beside peers: test error of a search for the scale against what the search may cost.",
    "robustness_error": "Test error after the last epoch against the initial step size.",
    "robustness_step_size": "The step size over training, from each initial one.",
    "test_error_evaluations": "Test error against gradient evaluations.",
    "test_error_seconds": "Test error against seconds of training.",
    "test_error_epoch": "Test error against epochs.",
    "train_loss_evaluations": "Training loss against gradient evaluations.",
    "train_loss_seconds": "Training loss against seconds of training.",
    "train_loss_epoch": "Training loss against epochs.",
    "step_size_evaluations": "Step size against gradient evaluations.",
    "decisions_epoch": "How the step size was decided, by epoch.",
}

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 1rem;
       max-width: 62rem; overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e5e5e5; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.runs td { text-align: left; } .runs th { text-align: left; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
figcaption, .caption { color: #444; font-size: 0.9rem; }
li { margin: 0.2rem 0; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 7pt; }
  th, td { padding: 0.1rem 0.3rem; white-space: normal; }
  .wide { overflow: visible; }
  tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""


def row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def grid(header: list[str], rows: Iterable[list[str]], kind: str = "") -> str:
    body = "\n".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="wide"><table class="{kind}"><thead>{row(header, "th")}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def bullets(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def table_section(title: str, table: Table, summary: list[str]) -> str:
    return "\n".join(
        [
            f"<h2>{escape(title)}</h2>",
            bullets(summary),
            f'<p class="caption">{escape(table.caption)}</p>',
            grid(table.header, table.cells),
            bullets(table.notes),
        ]
    )


def figure(path: Path, caption: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{content}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def how(run: Run) -> list[str]:
    """A run in a line: its name, the options that are not the defaults, and what its JSON says."""
    default, config = RunConfig(model=run.config.model).to_dict(), run.config.to_dict()
    hidden = {"data_dir", "output", "resume", "wandb"}
    options = []
    for name, value in config.items():
        if name in hidden or value == default[name]:
            continue
        option = "--" + name.replace("_", "-")
        options.append(option if value is True else f"{option} {value}")
    about = run.sidecar
    return [
        f"{run.path.parent.name}/{run.path.stem}",
        str(about["status"]),
        " ".join(options),
        str(about["device"]),
        str(about["commit"]),
        str(about.get("start", "")),
        f"{float(about.get('duration', 0)):,.0f}",
    ]


def environment(runs: list[Run]) -> list[list[str]]:
    """Package versions, devices and commits, and how many runs have each."""
    counts: dict[tuple[str, str], int] = {}
    for run in runs:
        entries = [
            *run.sidecar["versions"].items(),
            ("device", run.sidecar["device"]),
            ("commit", run.sidecar["commit"]),
        ]
        for name, value in entries:
            if value is not None:
                counts[name, str(value)] = counts.get((name, str(value)), 0) + 1
    return [[name, value, str(count)] for (name, value), count in sorted(counts.items())]


def all_tables(results: Path, name: str) -> tuple[list[tuple[Table, list[str]]], list[str]]:
    """The tables of what the study has, those beside peers first, and why there are not more.

    Raises:
        UsageError: there are none.
    """
    folder = results / name
    beside_peers: list[tuple[Table, list[str]]] = []
    problems: list[str] = []
    if (folder / "peers").is_dir():
        try:
            beside_peers = make_peer_tables.tables_of(load_peers(results, name))
        except UsageError as problem:
            problems.append(f"No peers: {problem}")
        if not (folder / "table").is_dir() and not (folder / "lr").is_dir() and beside_peers:
            return beside_peers, []
    tables, others = tables_of(results, name)
    return beside_peers + tables, problems + others


def work(results: Path, name: str, out: Path) -> None:
    tables, problems = all_tables(results, name)
    runs = [run for part in ("peers", "table", "lr", "equal") for run in read_study(results / name / part)[0]]
    titles = {
        "peers": "Beside peers",
        "peers_equal": "Beside peers, equal evaluations",
        "peers_budget": "Beside peers, search included",
        "table": "The 16 optimizers",
        "robustness": "Initial step sizes",
        "equal": "Equal evaluations",
    }
    pictures = [
        figure(out / f"{stem}.png", words)
        for stem, words in FIGURES.items()
        if (out / f"{stem}.png").exists()
    ]
    if not pictures:
        raise UsageError(f"{out} holds no figures; make figures draws them.")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>ACME: {escape(name)}</title><style>{STYLE}</style></head><body>",
        f"<h1>ACME, study “{escape(name)}”</h1>",
        bullets(problems),
        *(table_section(titles[table.name], table, summary) for table, summary in tables),
        "<h2>Figures</h2>",
        *pictures,
        "<h2>How each was run</h2>",
        "<p>With <code>icassp25/cifar100.acme.py</code> and these options; the others had their defaults.</p>",
        grid(
            ["Run", "Status", "Options", "Device", "Commit", "Start (UTC)", "Seconds"],
            map(how, runs),
            "runs",
        ),
        "<h2>Environment</h2>",
        grid(["", "Value", "Runs"], environment(runs), "runs"),
        "</body></html>",
    ]
    write_whole(out / "report.html", "\n".join(parts) + "\n")
    print(out / "report.html")


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
