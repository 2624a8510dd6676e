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
    printed = run_without_torch("make_peer_tables", results, "s", out)
    run_without_torch("plot_peers", results, "s", out)
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


def test_expected_error_is_the_mean_over_all_draws(script: Any) -> None:
    search = script("peer_study").Search(
        (0.1, 1.0, 10.0, 100.0), (0.5, 0.3, 0.9, math.inf), (51.0, 33.0, 89.0, 99.0)
    )
    for draws in (1, 2, 3, 4):
        found = [
            search.test[min(drawn, key=lambda i: search.validation[i])]
            for drawn in itertools.combinations(range(4), draws)
        ]
        assert search.expected(draws) == pytest.approx(sum(found) / len(found))
    assert [search.outwards(draws) for draws in (1, 2, 3, 4)] == [33.0, 33.0, 33.0, 33.0]
    worse = script("peer_study").Search((0.1, 1.0, 10.0), (0.2, 0.3, 0.1), (20.0, 30.0, 10.0))
    assert [worse.outwards(draws) for draws in (1, 2, 3)] == [30.0, 20.0, 10.0]


def test_numbers_of_the_peers_table(study: SimpleNamespace) -> None:
    rows = last_rows(study.results / "s" / "peers")
    table = pd.read_csv(study.out / "peers.csv").set_index("optimizer")
    assert len(table) == 16
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
    assert len(table) == 11
    ratio = table["acme_evaluations"] / table["default_evaluations"]
    assert ((0.85 <= ratio) & (ratio <= 1)).all()
    assert table.loc["SAM", "acme"] == "SGD + ACME"
    assert table.loc["Prodigy", "acme"] == "Adam + ACME, averaged weights, 0.83 of the steps"
    assert (
        table.loc["SGD + ACME, half the epochs", "acme"] == "SGD + ACME, averaged weights, 0.83 of the steps"
    )
    page = (study.out / "peers_equal.md").read_text()
    assert "at no more gradient evaluations" in page and "0.83 or 1 of an epoch's batches" in page
    assert "of an epoch's batches" not in (study.out / "peers.md").read_text()


def test_equal_evaluations_are_nearly_equal_without_runs_for_that(
    study: SimpleNamespace, tmp_path: Path, run_without_torch: Any
) -> None:
    shutil.copytree(study.results, tmp_path / "results")
    for path in (tmp_path / "results" / "s" / "peers").glob("*-acme-equal.*"):
        path.unlink()
    run_without_torch("make_peer_tables", tmp_path / "results", "s", tmp_path)
    table = pd.read_csv(tmp_path / "s" / "peers_equal.csv").set_index("optimizer")
    ratio = table["acme_evaluations"] / table["default_evaluations"]
    assert ((1 <= ratio) & (ratio <= 1.15)).all()
    assert table.loc["Prodigy", "acme"] == "Adam + ACME, averaged weights"
    page = (tmp_path / "s" / "peers_equal.md").read_text()
    assert "at about as many gradient evaluations" in page
    assert "Missing: SGD + ACME, averaged weights, 0.83 of the steps, 2 of 2 runs." in page


def test_numbers_of_the_budget(study: SimpleNamespace) -> None:
    rows = last_rows(study.results / "s" / "peers")
    table = pd.read_csv(study.out / "peers_budget.csv")
    part = rows[rows.name == "sgd"]
    for runs, column in (
        (1, part.groupby("seed").test.mean()),
        (3, part.loc[part.groupby("seed").validation.idxmin()].test),
    ):
        line = table[(table.optimizer == "SGD") & (table.runs == runs)].iloc[0]
        assert line["random_error_mean"] == pytest.approx(column.mean())
    acme = table[table.optimizer == "SGD + ACME"]
    assert acme.evaluations.min() == 80 and acme[acme.evaluations == 120].runs.item() == 1
    assert table[table.optimizer == "Prodigy"].seeds.unique().tolist() == [1]


def test_what_is_missing_diverged_or_foreign_is_named(study: SimpleNamespace) -> None:
    for text in (
        "Missing: Prodigy, 1 of 6 runs.",
        "Diverged: SGD, ×1000 (2).",
        "stray.csv is left out: not one of the sweep's runs.",
        "Left out of the searches: Prodigy, seed 43",
    ):
        assert text in study.printed
    for name in ("peers", "peers_equal", "peers_budget"):
        text = (study.out / f"{name}.md").read_text()
        assert "Example CPU" in text and "seeds 42, 43" in text
        assert "×" not in (study.out / f"{name}.tex").read_text()


def test_the_figure_of_the_budget_says_how_many_seeds_count(study: SimpleNamespace, script: Any) -> None:
    loaded = script("peer_study").load_peers(study.results, "s")
    drawn = script("plot_peers").plot_budget(loaded)
    said = " ".join(drawn.get_suptitle().split())
    assert said.startswith(
        f"Mean over the seeds that have every scale, 1 to {len(loaded.seeds)} of {len(loaded.seeds)}. "
    )


def test_figures_and_report(study: SimpleNamespace) -> None:
    for name in ("peers_robustness", "peers_price", "peers_budget"):
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
        page.count("<img ") == 3 and "Beside peers, search included" in page and "peers/dog.x1.seed42" in page
    )


def test_styles_tell_the_methods_of_a_family_apart(script: Any) -> None:
    methods, looks = script("peer_study").METHODS, script("plot_peers").LOOKS
    in_tables_only = {"adam-acme-rare", "adam-acme-kept"}
    assert looks.keys() == {key for key, method in methods.items() if not method.shortened} - in_tables_only
    for family, cheap in itertools.product(("SGD", "Adam"), ("kept", "rare")):
        colors = [
            looks[key]["color"]
            for key, method in methods.items()
            if key in looks and method.family == family and method.cheap in ("", cheap)
        ]
        assert len(set(colors)) == len(colors)


def test_kept_step_sizes_and_rare_look_aheads(
    made: SimpleNamespace, script: Any, tmp_path: Path, run_without_torch: Any
) -> None:
    """A study has one of the two, or both; what it has not is not missing."""
    folder, load = tmp_path / "s" / "peers", script("peer_study").load_peers
    dog, sam = (script("peer_study").METHODS[key] for key in ("dog", "sam"))
    made.peers(folder, (42, 43), SCALES, kept=True)
    study = load(tmp_path, "s")
    assert study.cheap == ["kept"] and study.missing(shortened=True) == [] and study.left_out == []
    assert study.counterpart(dog).key == "sgd-acme-kept-averaged" and study.counterpart(sam).key == "sgd-acme"
    assert study.counterpart(dog, equal=True).key == "sgd-acme-kept-equal"
    assert "ahead of" in run_without_torch("make_peer_tables", tmp_path, "s", tmp_path)
    page = (tmp_path / "s" / "peers.md").read_text()
    assert "a step size that is kept, with averaged weights" in page and "rare look-ahead" not in page
    made.peers(folder, (42, 43), SCALES)
    study = load(tmp_path, "s")
    assert study.cheap == ["kept", "rare"] and study.missing(shortened=True) == []
    assert len(study.methods) == 16 + 5 + 4 + 2
    script("plot_peers").plot_robustness(study)


def test_seconds_are_the_benchmarks_where_it_has_measured(
    made: SimpleNamespace, script: Any, tmp_path: Path, run_without_torch: Any
) -> None:
    made.peers(tmp_path / "s" / "peers", (42,), SCALES)
    load = script("peer_study").load_peers
    own = load(tmp_path, "s").cost("dog", "seconds")
    assert own == pytest.approx(5.2)  # as the made-up CSVs have it
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "peers-s.csv").write_text(
        "optimizer,step_ms,to_sgd\ndog,50,2.0\nsgd-acme,40,1.6\n"
    )
    study = load(tmp_path, "s")
    assert study.cost("dog", "seconds") == pytest.approx(40 * 0.05)
    assert study.cost("sgd-acme-half", "seconds") == pytest.approx(20 * 0.04)
    assert study.cost("prodigy", "seconds") is None
    assert "what one takes in benchmarks/peers.py" in run_without_torch(
        "make_peer_tables", tmp_path, "s", tmp_path
    )


TEXT = {"dataset": "text", "model": "transformer", "depth": 2, "width_alpha": 64}


def say(folder: Path, names: str, **entries: object) -> None:
    """Add to the JSONs of runs."""
    for path in folder.glob(names):
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_study_of_another_task_says_which(
    made: SimpleNamespace, script: Any, tmp_path: Path, run_without_torch: Any
) -> None:
    folder = tmp_path / "s" / "peers"
    made.peers(folder, (42, 43), SCALES, **TEXT)
    say(folder, "*.json", text_sha256="abc", chance=0.882025)
    say(folder, "adamw.x1.seed43.json", text_sha256="def")
    printed = run_without_torch("make_peer_tables", tmp_path, "s", tmp_path)
    run_without_torch("plot_peers", tmp_path, "s", tmp_path)
    assert "adamw.x1.seed43.csv is left out: text_sha256 is def, most have abc." in printed
    for name in ("peers", "peers_equal", "peers_budget"):
        page = (tmp_path / "s" / f"{name}.md").read_text()
        assert "training images" not in page and "CIFAR" not in page.splitlines()[0]
        assert "Transformer, 2 layers, width 64 (77,412 parameters), next character of torch.nn's doc" in page
        assert "1,000 training windows of 64 characters, 500 validation windows" in page
    assert "A diverged run counts as 88.2 %" in (tmp_path / "s" / "peers_budget.md").read_text()
    assert "DoG: ×1 is 1e-06" in (tmp_path / "s" / "peers.md").read_text()
    table = pd.read_csv(tmp_path / "s" / "peers.csv").set_index("optimizer")
    assert table.loc["DoG", "scales"] == 3 and table.loc["DoG", "default"] == 1e-6

    study = script("peer_study").load_peers(tmp_path, "s")
    assert study.chance == pytest.approx(88.2025)
    assert study.search("sgd", 42).test[-1] == study.chance  # diverged
    assert script("plot_peers").chance_handle(study).get_label() == "chance (88.2 %)"


def test_overview_of_two_tasks(
    study: SimpleNamespace, made: SimpleNamespace, script: Any, tmp_path: Path
) -> None:
    made.peers(study.results / "t" / "peers", (42, 43), SCALES, **TEXT)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "peer_overview.py"), "--results", str(study.results),
         "--out", str(tmp_path), "--studies", "s", "t"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "peers" / "overview.csv").set_index(["optimizer", "task"])
    assert len(table) == 2 * 16
    own = pd.read_csv(study.out / "peers.csv").set_index("optimizer")
    budget = pd.read_csv(study.out / "peers_budget.csv")
    one = budget[budget.runs == 1].groupby("optimizer").random_error_mean.first()
    for title in ("Prodigy", "SGD", "SAM", "SGD + ACME, rare look-ahead"):
        line = table.loc[(title, "CIFAR-100")]
        for column in ("default_error_mean", "default_error_std", "tuned_error_mean", "chosen"):
            assert line[column] == pytest.approx(own.loc[title, column])
        assert line["random_error"] == pytest.approx(one[title])
        steps = 1 if title in ("Prodigy", "SGD") else 2 if title == "SAM" else pytest.approx(1.1, abs=0.03)
        assert line["evaluations_per_step"] == steps
    assert table.loc[("Prodigy", "CIFAR-100"), "random_seeds"] == 1  # one of seed 43's runs is missing
    page = (tmp_path / "peers" / "overview.md").read_text()
    assert "- CIFAR-100: Missing: Prodigy, 1 of 6 runs." in page and "text: random" in page
    assert (tmp_path / "peers" / "overview.png").exists() and (tmp_path / "peers" / "overview.pdf").exists()

    figure = script("peer_overview").plot_overview(
        [script("peer_study").load_peers(study.results, name) for name in ("s", "t")]
    )
    titles = [axes.get_title() for axes in figure.get_axes()]
    assert titles == ["CIFAR-100 (WRN)", "text (transformer)"] * 2
    for family, legend in zip(("SGD", "Adam"), [row.legends[0] for row in figure.subfigs], strict=True):
        names = [text.get_text() for text in legend.get_texts()]
        methods, looks = script("peer_study").METHODS.values(), script("plot_peers").LOOKS
        expected = [m.title for m in methods if m.family == family and m.key in looks and m.cheap != "kept"]
        assert [name for name in names if name not in ("chance", "diverged (some seed)")] == expected


def test_overview_of_a_study_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "peer_overview.py"), "--results", str(tmp_path), "--studies", "x"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "holds no finished run" in done.stderr and done.stderr.count("\n") == 1


def test_chance_is_that_of_the_data_set(made: SimpleNamespace, script: Any, tmp_path: Path) -> None:
    for dataset, model, chance in (("cifar100", "WRN", 99.0), ("digits", "MLP", 90.0)):
        made.run(tmp_path / f"{dataset}.csv", dataset=dataset, model=model)
        (one,) = [one for one in script("study").read_study(tmp_path)[0] if one.config.dataset == dataset]
        assert script("study").chance_of(one) == pytest.approx(chance)
