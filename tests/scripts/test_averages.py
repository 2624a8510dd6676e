"""The table of annealed steps beside averaged weights: its numbers against the CSVs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

WAYS = {
    "annealed": {},
    "neither": {"no_annealing": True},
    "both": {"average_weights": True},
    "partly": {"anneal_over": 1.5, "average_weights": True},
    "averaged": {"no_annealing": True, "average_weights": True},
}
HEADERS = {
    "annealed": "as usual",
    "neither": "no_annealing",
    "both": "average_weights",
    "partly": "anneal_over 1.5, average_weights",
    "averaged": "no_annealing, average_weights",
}


def test_numbers_are_those_of_the_runs(made: SimpleNamespace, tmp_path: Path, run_without_torch: Any) -> None:
    """Of two folders, whatever way lies where; what has no partner in `averages` is left out."""
    study = tmp_path / "s"
    kept = {"acme": True, "gain": 2.0, "adapt_steps": 60, "search_steps": 20}
    optimizers = {"sgd-acme-kept": {"lr": 0.1, **kept}, "adamw": {"lr": 0.01, "optimizer": "adamw"}}
    written = {}
    for seed in (42, 43):
        for name, options in optimizers.items():
            for way, flags in WAYS.items():
                if (name, way, seed) == ("adamw", "both", 43):
                    continue
                beside = way == "annealed" or (name == "sgd-acme-kept" and way == "partly")
                path = study / ("peers" if beside else "averages") / f"{name}.{way}.seed{seed}.csv"
                made.run(path, seed=seed, validation=500, **options, **flags)
                written.setdefault((name, way), []).append(path)
    made.run(study / "peers" / "sgd.x1.csv", seed=42, validation=500, lr=1.0, optimizer="sgd")
    made.run(study / "peers" / "sgd-acme-half.x1.csv", seed=42, validation=500, lr=0.1, acme=True, epochs=1)
    printed = run_without_torch("make_tables", tmp_path, "s", tmp_path)
    assert "SGD + ACME" in printed
    table = pd.read_csv(study / "averages.csv").set_index("optimizer")
    assert len(table) == 2
    for (name, way), paths in written.items():
        errors = [100 * pd.read_csv(path).test_error.iloc[-1] for path in paths]
        row = table.loc["SGD + ACME, step size kept" if name == "sgd-acme-kept" else "AdamW"]
        assert row[f"{HEADERS[way]}: error_mean"] == pytest.approx(sum(errors) / len(errors))
        assert row[f"{HEADERS[way]}: seeds"] == len(paths)
    page = (study / "averages.md").read_text()
    assert page.count("\n| ") == 3 and "diverged" not in page


def test_a_way_that_has_no_run_is_a_dash(
    made: SimpleNamespace, tmp_path: Path, run_without_torch: Any
) -> None:
    options = {"seed": 42, "validation": 500, "lr": 0.1, "optimizer": "sgd"}
    made.run(tmp_path / "s" / "averages" / "sgd.neither.csv", no_annealing=True, **options)
    made.run(tmp_path / "s" / "peers" / "sgd.x1.csv", **options)
    made.run(
        tmp_path / "s" / "averages" / "adamw.averaged.csv",
        **{**options, "optimizer": "adamw"},
        average_weights=True,
    )
    run_without_torch("make_tables", tmp_path, "s", tmp_path)
    lines = (tmp_path / "s" / "averages.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| SGD ")]
    assert [cell.strip() for cell in row.strip("|").split("|")][-1] == "—"
