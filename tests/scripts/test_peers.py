"""ACME beside its peers: what a search gets, the tables' numbers against the CSVs, and what is left out."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from scipy import stats
from study.beside_peers import Peers, peers_table
from study.peer_figures import chance_handle, drawn, plot_budget, plot_overview, plot_robustness
from study.runs import chance_of, read_study
from study.stats import Search
from study.titles import TITLES

ROOT = Path(__file__).resolve().parents[2]
SCALES = (0.1, 1.0, 1000.0)


@pytest.fixture(scope="module")
def study(
    made: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, run_without_torch: Any
) -> SimpleNamespace:
    """Two seeds, three scales, SGD diverged from the largest, Prodigy's run of one seed missing; tables and figures."""
    results, out = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("figures")
    made.peers(results / "s" / "peers", (42, 43), SCALES)
    for suffix in ("csv", "json"):
        (results / "s" / "peers" / f"prodigy.x0.1.seed43.{suffix}").unlink()
    made.run(results / "s" / "peers" / "stray.csv", seed=42, lr=0.1, nesterov=True, acme=True, validation=500)
    printed = run_without_torch("make_tables", results, "s", out)
    run_without_torch("make_figures", results, "s", out)
    return SimpleNamespace(results=results, out=out / "s", printed=printed)


def last_rows(folder: Path) -> pd.DataFrame:
    lines = []
    for path in sorted(folder.glob("*.x*.csv")):
        about = json.loads(path.with_suffix(".json").read_text())
        name, multiple, seed = path.stem.replace(".x", " ").replace(".seed", " ").split()
        row = pd.read_csv(path).iloc[-1]
        lost = about["status"] == "diverged"
        lines.append(
            {
                "name": name,
                "scale": float(multiple),
                "seed": int(seed),
                "test": 99.0 if lost else 100 * row["test_error"],
                "validation": math.inf if lost else row["validation_error"],
                "lost": lost,
            }
        )
    return pd.DataFrame(lines)


def test_expected_error_is_the_mean_over_all_draws() -> None:
    search = Search((0.1, 1.0, 10.0, 100.0), (0.5, 0.3, 0.9, math.inf), (51.0, 33.0, 89.0, 99.0))
    for draws in (1, 2, 3, 4):
        found = [
            search.test[min(drawn, key=lambda i: search.validation[i])]
            for drawn in itertools.combinations(range(4), draws)
        ]
        assert search.expected(draws) == pytest.approx(sum(found) / len(found))
    assert [search.outwards(draws) for draws in (1, 2, 3, 4)] == [33.0, 33.0, 33.0, 33.0]
    worse = Search((0.1, 1.0, 10.0), (0.2, 0.3, 0.1), (20.0, 30.0, 10.0))
    assert [worse.outwards(draws) for draws in (1, 2, 3)] == [30.0, 20.0, 10.0]


def test_numbers_of_the_peers_table(study: SimpleNamespace) -> None:
    rows = last_rows(study.results / "s" / "peers")
    table = pd.read_csv(study.out / "peers.csv").set_index("optimizer")
    assert len(table) == 20
    acme = rows[(rows.name == "sgd-acme-averaged") & (rows.scale == 1)].set_index("seed").test
    part = rows[rows.name == "dog"]
    default = part[part.scale == 1].set_index("seed").test
    chosen = part.loc[part[part.seed == 42].validation.idxmin()].scale
    tuned = part[part.scale == chosen].set_index("seed").test
    line = table.loc["DoG"]
    assert line["default_error_mean"] == pytest.approx(default.mean())
    assert line["tuned_error_mean"] == pytest.approx(tuned.mean()) and line["chosen"] == chosen
    assert line["worst_error"] == pytest.approx(part.groupby("scale").test.mean().max())
    for side, errors in (("default", default), ("tuned", tuned)):
        interval = stats.ttest_rel(acme, errors).confidence_interval(0.95)
        assert line[f"{side}_difference"] == pytest.approx((acme - errors).mean())
        assert (line[f"{side}_interval_low"], line[f"{side}_interval_high"]) == pytest.approx(tuple(interval))
    assert table.loc["SGD", "scales_diverged"] == 1 and table.loc["SGD", "scales"] == 3


def test_equal_evaluations_are_no_more(study: SimpleNamespace) -> None:
    table = pd.read_csv(study.out / "peers_equal.csv").set_index("optimizer")
    assert len(table) == 15
    ratio = (table["acme_evaluations"] / table["default_evaluations"]).drop("GeN-AdamW")  # of 1.25 a step
    assert ((0.85 <= ratio) & (ratio <= 1)).all()
    assert table.loc["SAM", "acme"] == "SGD + ACME"
    assert table.loc["Prodigy", "acme"] == "Adam + ACME, averaged weights, fewer steps"
    assert table.loc["SGD + ACME, half the epochs", "acme"] == "SGD + ACME, averaged weights, fewer steps"
    page = (study.out / "peers_equal.md").read_text()
    assert "At no more gradient evaluations" in page and "0.83 or 1 of an epoch's batches" in page
    assert "of an epoch's batches" not in (study.out / "peers.md").read_text()


def test_equal_evaluations_are_nearly_equal_without_runs_for_that(
    study: SimpleNamespace, tmp_path: Path, run_without_torch: Any
) -> None:
    shutil.copytree(study.results, tmp_path / "results")
    for path in (tmp_path / "results" / "s" / "peers").glob("*-acme-equal.*"):
        path.unlink()
    run_without_torch("make_tables", tmp_path / "results", "s", tmp_path)
    table = pd.read_csv(tmp_path / "s" / "peers_equal.csv").set_index("optimizer")
    ratio = (table["acme_evaluations"] / table["default_evaluations"]).drop("GeN-AdamW")
    assert ((1 <= ratio) & (ratio <= 1.15)).all()
    assert table.loc["Prodigy", "acme"] == "Adam + ACME, averaged weights"
    page = (tmp_path / "s" / "peers_equal.md").read_text()
    assert "At about as many gradient evaluations" in page


def test_numbers_of_the_budget(study: SimpleNamespace) -> None:
    rows = last_rows(study.results / "s" / "peers")
    table = pd.read_csv(study.out / "peers_budget.csv").set_index("optimizer")
    part = rows[rows.name == "sgd"]
    for evaluations, column in (
        (40, part.groupby("seed").test.mean()),
        (120, part.loc[part.groupby("seed").validation.idxmin()].test),
    ):
        assert table.loc["SGD", f"{evaluations}_random_error_mean"] == pytest.approx(column.mean())
    assert (
        table.loc["SGD + ACME"].filter(like="random_error_mean").first_valid_index() == "80_random_error_mean"
    )
    assert table.seeds.to_dict()["Prodigy"] == 1


def test_what_is_missing_diverged_or_foreign_is_named(study: SimpleNamespace) -> None:
    for text in (
        "Missing: Prodigy, 1 of 6 runs.",
        "Diverged: SGD from 100 (2).",
        "stray.csv is left out: no run from the default (x1).",
        "Left out of the searches: Prodigy, seed 43",
    ):
        assert text in study.printed
    for name in ("peers", "peers_equal", "peers_budget"):
        text = (study.out / f"{name}.md").read_text()
        assert "Example CPU" in text and "seeds 42, 43" in text
        assert "×" not in (study.out / f"{name}.tex").read_text()


def test_the_figure_of_the_budget_says_how_many_seeds_count(study: SimpleNamespace) -> None:
    peers = Peers(study.results, "s")
    said = " ".join(plot_budget(peers).get_suptitle().split())
    assert said.startswith("Mean over the seeds that have every scale, at least 1 of 2. ")


def test_figures_and_report(study: SimpleNamespace) -> None:
    for name in ("peers_robustness", "peers_budget"):
        assert (study.out / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
        png = (study.out / f"{name}.png").read_bytes()
        assert int.from_bytes(png[16:20], "big") == 1400
    done = subprocess.run(
        [str(ROOT / "scripts" / "rebuild.sh"), "report"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHON": sys.executable,
            "RESULTS": str(study.results),
            "FIGURES": str(study.out.parent),
            "STUDY": "s",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (study.out / "report.html").read_text()
    assert (
        page.count("<img ") == 2 and "Beside peers, search included" in page and "peers/dog.x1.seed42" in page
    )


def test_styles_tell_the_methods_of_a_family_apart(study: SimpleNamespace) -> None:
    peers = Peers(study.results, "s")
    for family in ("SGD", "Adam"):
        keys = drawn([peers], family)
        assert len({TITLES[key].color for key in keys}) == len(keys) > 6
    kept = [one for key, one in TITLES.items() if "kept" in key and one.color]
    assert len({(one.color, one.marker) for one in kept}) == 2 and len(kept) == 4


def test_kept_step_sizes_and_rare_look_aheads(
    made: SimpleNamespace, tmp_path: Path, run_without_torch: Any
) -> None:
    """A study has one of the two, or both."""
    folder = tmp_path / "s" / "peers"
    made.peers(folder, (42, 43), SCALES, kept=True)
    peers = Peers(tmp_path, "s")
    assert peers.left_out == []
    assert peers.counterpart("dog") == "sgd-acme-kept-averaged" and peers.counterpart("sam") == "sgd-acme"
    assert peers.counterpart("dog", equal=True) == "sgd-acme-kept-equal"
    assert peers.counterpart("sgd-acme-half", equal=True) == "sgd-acme-kept-equal"
    assert "ahead of" in run_without_torch("make_tables", tmp_path, "s", tmp_path)
    page = (tmp_path / "s" / "peers.md").read_text()
    assert "(SGD + ACME, α kept, averaged weights; Adam + ACME, α kept" in page
    assert "rare look-ahead" not in page and "Missing" not in page
    assert "- SGD + ACME, α kept: ×1 is 0.1, the initial step size; acme, gain 2, adapt_steps 8, " in page
    made.peers(folder, (42, 43), SCALES)
    peers = Peers(tmp_path, "s")
    assert len(peers.groups) == 20 + 5 + 4 + 2 and peers.left_out == []
    plot_robustness(peers)


def test_a_key_without_a_title_goes_by_its_name(made: SimpleNamespace, tmp_path: Path) -> None:
    for scale in (1, 10):
        for name in ("adam-acme-bold", "new"):
            path = tmp_path / "s" / "peers" / f"{name}.x{scale}.seed42.csv"
            made.run(path, lr=0.001 * scale, seed=42, acme=True, adam=True, validation=500)
    table = peers_table(Peers(tmp_path, "s"))
    assert table.frame.iloc[:, 0].tolist() == ["Adam + ACME, bold", "new"]


def test_seconds_are_the_benchmarks_where_it_has_measured(
    made: SimpleNamespace, tmp_path: Path, run_without_torch: Any
) -> None:
    made.peers(tmp_path / "s" / "peers", (42,), SCALES)
    assert Peers(tmp_path, "s").cost("dog", "seconds") == pytest.approx(5.2)  # as the made-up CSVs have it
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "peers-s.csv").write_text(
        "optimizer,step_ms,to_sgd,evaluations\ndog,50,2.0,1\nsgd-acme,40,1.6,2\n"
    )
    peers = Peers(tmp_path, "s")
    assert peers.cost("dog", "seconds") == pytest.approx(40 * 0.05)
    assert peers.cost("sgd-acme-half", "seconds") == pytest.approx(20 * 0.04)
    assert peers.cost("prodigy", "seconds") is None
    assert "what one takes in benchmarks/peers.py" in run_without_torch(
        "make_tables", tmp_path, "s", tmp_path
    )


TEXT = {"dataset": "text", "model": "transformer", "depth": 2, "width_alpha": 64}


def say(folder: Path, names: str, **entries: object) -> None:
    """Add to the JSONs of runs."""
    for path in folder.glob(names):
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_study_of_another_task_says_which(
    made: SimpleNamespace, tmp_path: Path, run_without_torch: Any
) -> None:
    folder = tmp_path / "s" / "peers"
    made.peers(folder, (42, 43), SCALES, **TEXT)
    say(folder, "*.json", text_sha256="abc", chance=0.882025)
    say(folder, "adamw.x1.seed43.json", text_sha256="def")
    printed = run_without_torch("make_tables", tmp_path, "s", tmp_path)
    run_without_torch("make_figures", tmp_path, "s", tmp_path)
    assert "adamw.x1.seed43.csv is left out: text_sha256 is def, most have abc." in printed
    for name in ("peers", "peers_equal", "peers_budget"):
        page = (tmp_path / "s" / f"{name}.md").read_text()
        assert "training images" not in page and "CIFAR" not in page.splitlines()[0]
        assert "Transformer, 2 layers, width 64 (77,412 parameters), next character of torch.nn's doc" in page
        assert "1,000 training windows of 64 characters, 500 validation windows" in page
    assert "A diverged run counts as 88.2 %" in (tmp_path / "s" / "peers_budget.md").read_text()
    assert "DoG: ×1 is 1e-06" in (tmp_path / "s" / "peers.md").read_text()
    table = pd.read_csv(tmp_path / "s" / "peers.csv").set_index("optimizer")
    assert table.loc["DoG", "scales"] == 3 and table.loc["DoG", "start"] == 1e-6

    study = Peers(tmp_path, "s")
    assert study.chance == pytest.approx(88.2025)
    assert study.searches("sgd")[42].test[-1] == study.chance  # diverged
    assert chance_handle(study).get_label() == "chance (88.2 %)"


def test_overview_of_two_tasks(study: SimpleNamespace, made: SimpleNamespace, tmp_path: Path) -> None:
    made.peers(study.results / "t" / "peers", (42, 43), SCALES, **TEXT)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_overview.py"), "--results", str(study.results),
         "--out", str(tmp_path), "--study", "s", "t"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "peers" / "overview.csv").set_index("optimizer")
    one = table.index[table.index.str.endswith("on all tasks")].item()
    rows = [last_rows(study.results / task / "peers").query("name == 'adamw'") for task in ("s", "t")]
    total = sum(part[part.seed == 42].set_index("scale").validation for part in rows)
    assert one == f"AdamW, ×{total.idxmin():g} on all tasks"
    mean = rows[1][rows[1].scale == total.idxmin()].test.mean()
    assert table.loc[one, "text_tuned_error_mean"] == pytest.approx(mean)
    assert len(table) == 21
    own = pd.read_csv(study.out / "peers.csv").set_index("optimizer")
    for title in ("Prodigy", "SGD", "SAM", "SGD + ACME, rare look-ahead"):
        line = table.loc[title]
        for column in ("default_error_mean", "default_error_std", "tuned_error_mean", "chosen"):
            assert line[f"CIFAR-100_{column}"] == pytest.approx(own.loc[title, column])
        steps = 1 if title in ("Prodigy", "SGD") else 2 if title == "SAM" else pytest.approx(1.1, abs=0.03)
        assert line["CIFAR-100_evaluations_a_step"] == line["text_evaluations_a_step"] == steps
    page = (tmp_path / "peers" / "overview.md").read_text()
    assert "- CIFAR-100: Missing: Prodigy, 1 of 6 runs." in page and "text, error in %: random" in page
    assert (tmp_path / "peers" / "overview.png").exists() and (tmp_path / "peers" / "overview.pdf").exists()

    studies = {"CIFAR-100": Peers(study.results, "s"), "text": Peers(study.results, "t")}
    figure = plot_overview(studies)
    assert [axes.get_title() for axes in figure.get_axes()] == ["CIFAR-100 (WRN)", "text (transformer)"] * 2
    for family, row in zip(("SGD", "Adam"), figure.subfigs, strict=True):
        names = [text.get_text() for text in row.legends[0].get_texts()]
        expected = [TITLES[key].text for key in drawn(studies.values(), family)]
        assert [name for name in names if name not in ("chance", "diverged (some seed)")] == expected


def test_overview_of_a_study_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_overview.py"), "--results", str(tmp_path), "--study", "x"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "no such study" in done.stderr and done.stderr.count("\n") == 1


def test_chance_is_that_of_the_data_set(made: SimpleNamespace, tmp_path: Path) -> None:
    for dataset, model, chance in (("cifar100", "WRN", 99.0), ("digits", "MLP", 90.0)):
        made.run(tmp_path / f"{dataset}.csv", dataset=dataset, model=model)
        (one,) = [one for one in read_study(tmp_path)[0] if one.config.dataset == dataset]
        assert chance_of(one) == pytest.approx(chance)
