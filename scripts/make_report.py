#!/usr/bin/env python3
"""One self-contained page of a study: its tables, its figures, how each run was made, and in what environment.

Writes report.html to OUT/STUDY, from the CSVs and JSONs of the study and the PNGs that are in OUT/STUDY already.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

import make_peer_tables
from make_tables import Table, tables_of
from peer_study import load_peers
from study import UsageError, command_line, device_of, read_study, write_whole

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
       max-width: 66rem; overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e5e5e5; }
thead tr:last-child th { border-bottom: 2px solid #888; }
th.over { text-align: center; border-bottom: 1px solid #888; }
tr.foot td { border-top: 2px solid #888; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
.blank { visibility: hidden; }
.option { white-space: nowrap; }
.runs td, .runs th { text-align: left; }
figure { margin: 1.5rem 0; }
figure img { width: 100%; min-width: 44rem; height: auto; display: block; }
figcaption, .caption { color: #444; font-size: 0.9rem; }
li { margin: 0.2rem 0; }
@media (max-width: 40rem) {
  th, td { padding: 0.25rem 0.4rem; }
  th:first-child, td:first-child { white-space: normal; min-width: 5.5rem; }
}
@page { size: A4; margin: 14mm 12mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h1, h2 { break-after: avoid; }
  h2 { margin-top: 1.5rem; }
  .wide { overflow: visible; }
  .whole, figure, tr { break-inside: avoid; }
  .caption, .above { break-after: avoid; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.15rem 0.25rem; }
  th:first-child, td:first-child { position: static; }
  .runs { font-size: 7pt; }
  .runs td { padding: 0.05rem 0.2rem; }
  .runs td:has(.option) { white-space: normal; }
  figure img { min-width: 0; }
}
"""


def in_html(text: str) -> str:
    """Text; options are not broken at their hyphens."""
    if not text.startswith("--"):
        return escape(text)
    return " ".join(f'<span class="option">{escape(option)}</span>' for option in re.split(" (?=--)", text))


def row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{in_html(cell)}</{tag}>" for cell in cells) + "</tr>"


def grid(header: list[str], rows: Iterable[list[str]]) -> str:
    body = "\n".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="wide"><table class="runs"><thead>{row(header, "th")}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def bullets(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def numbers_grid(table: Table) -> str:
    """The table with its numbers aligned, and what stands above several columns above them."""
    over = "".join(
        f'<th class="over" colspan="{count}">{escape(name)}</th>' if name else "<th></th>" * count
        for name, count in table.groups()
    )
    rows = []
    for number, cells in enumerate(table.padded(), start=table.footer - len(table.cells)):
        texts = (
            "".join(
                f'<span class="blank">{escape(text)}</span>' if blank else escape(text)
                for text, blank in cell
            )
            for cell in cells
        )
        kind = ' class="foot"' if number == 0 else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    names = row((column.name for column in table.columns), "th")
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table><thead><tr>{over}</tr>{names}</thead>\n<tbody>{body}</tbody></table></div>'
    )


def table_section(title: str, table: Table, summary: list[str]) -> str:
    return "\n".join(
        [
            f"<h2>{escape(title)}</h2>",
            bullets(summary),
            '<div class="whole">',
            f'<p class="caption">{escape(table.caption)}</p>',
            numbers_grid(table),
            "</div>",
            bullets(table.notes),
        ]
    )


def figure(path: Path, caption: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><div class="wide"><img src="data:image/png;base64,{content}" alt="{escape(caption)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def options(run: Run) -> list[str]:
    """A run's options that are not the defaults."""
    default, config = RunConfig(model=run.config.model).to_dict(), run.config.to_dict()
    hidden = {"data_dir", "output", "resume", "wandb"}
    given = []
    for name, value in config.items():
        if name in hidden or value == default[name]:
            continue
        option = "--" + name.replace("_", "-")
        given.append(option if value is True else f"{option} {value}")
    return given


def how(runs: list[Run]) -> str:
    """A line a run: its name, its options, and what its JSON says; what all have in common is said above."""
    common = [option for option in options(runs[0]) if all(option in options(run) for run in runs)]
    columns: dict[str, list[str]] = {
        "Run": [f"{run.path.parent.name}/{run.path.stem}" for run in runs],
        "Status": [str(run.sidecar["status"]) for run in runs],
        "Options": [" ".join(option for option in options(run) if option not in common) for run in runs],
        "Device": [device_of(run) for run in runs],
        "Commit": [str(run.sidecar["commit"]) for run in runs],
        "Start (UTC)": [str(run.sidecar.get("start", ""))[:16].replace("T", "\u00a0") for run in runs],
        "Seconds": [str(run.sidecar.get("duration", "")).split(".")[0] for run in runs],
    }
    same = [
        f"{name.lower()} {values[0]}"
        for name, values in columns.items()
        if len(runs) > 1 and len(set(values)) == 1
    ]
    kept = {name: values for name, values in columns.items() if len(runs) == 1 or len(set(values)) > 1}
    words = f'<p class="above">Each with <code>icassp25/cifar100.acme.py {in_html(" ".join(common))}</code> and the options below'
    words += f"; all: {escape(', '.join(same))}" * bool(same) + ". Options not given had their defaults.</p>"
    return words + grid(list(kept), [list(cells) for cells in zip(*kept.values(), strict=True)])


def environment(runs: list[Run]) -> list[list[str]]:
    """Package versions, devices and commits, and how many runs have each."""
    counts: dict[tuple[str, str], int] = {}
    for run in runs:
        entries = [
            *run.sidecar["versions"].items(),
            ("device", device_of(run)),
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
        how(runs),
        '<div class="whole"><h2>Environment</h2>',
        grid(["", "Value", "Runs"], environment(runs)),
        "</div>",
        "</body></html>",
    ]
    write_whole(out / "report.html", "\n".join(parts) + "\n")
    print(out / "report.html")


if __name__ == "__main__":
    sys.exit(command_line(__doc__.splitlines()[0], work))
