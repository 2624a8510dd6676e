"""The tables: their numbers against the CSVs, their text, and the runs they leave out."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
FILES = [f"{name}.{suffix}" for name in ("robustness", "table") for suffix in ("csv", "md", "tex")]


def make_tables(results: Path, study: str, out: Path) -> subprocess.CompletedProcess[str]:
    options = ["--results", str(results), "--study", study, "--out", str(out)]
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_tables.py"), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=out,
    )


@pytest.fixture(scope="module")
def made_of(results: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What the whole study gives: its folder of tables and what was printed."""
    out = tmp_path_factory.mktemp("figures")
    done = make_tables(results, "three", out)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=out / "three", printed=done.stdout)


def last_rows(folder: Path) -> pd.DataFrame:
    """One line a run: its options and the last line of its CSV, read without the run log."""
    lines = []
    for path in sorted(folder.glob("*.csv")):
        options = json.loads(path.with_suffix(".json").read_text())["options"]
        last = pd.read_csv(path).iloc[-1]
        names = ("adam", "asam", "nesterov", "acme", "lr", "seed")
        lines.append({name: options[name] for name in names} | last.drop("lr").to_dict())
    return pd.DataFrame(lines)


def flags(label: str) -> tuple[bool, bool, bool]:
    assert label.split(" + ")[0] in ("SGD", "Adam")
    return "Adam" in label, "ASAM" in label, "Nesterov" in label


# ── Numbers ───────────────────────────────────────────────────────────────────────────────────────────


def test_table_numbers(results: Path, made_of: SimpleNamespace) -> None:
    runs = last_rows(results / "three" / "table")
    table = pd.read_csv(made_of.folder / "table.csv")
    assert len(table) == 8 and len({flags(label) for label in table["optimizer"]}) == 8
    for _, row in table.iterrows():
        adam, asam, nesterov = flags(row["optimizer"])
        base = runs[(runs.adam == adam) & (runs.asam == asam) & (runs.nesterov == nesterov)]
        sides = {}
        for side, acme in (("without", False), ("acme", True)):
            part = base[base.acme == acme].sort_values("seed")
            sides[side] = errors = 100 * part["test_error"].to_numpy()
            assert len(errors) == row[f"seeds_{side}"] == 3 and row[f"diverged_{side}"] == 0
            assert row[f"error_mean_{side}"] == pytest.approx(np.mean(errors), rel=1e-12)
            assert row[f"error_std_{side}"] == pytest.approx(np.std(errors, ddof=1), rel=1e-9)
            assert row[f"evaluations_{side}"] == 40 * (1 + asam + acme)
            assert row[f"seconds_{side}"] == pytest.approx(part["seconds"].mean(), rel=1e-12)
        difference = sides["acme"] - sides["without"]
        assert row["difference"] == pytest.approx(difference.mean(), rel=1e-9)
        # the paired t-test, written out
        t = difference.mean() / (difference.std(ddof=1) / np.sqrt(3))
        assert row["pairs"] == 3 and row["p_value"] == pytest.approx(2 * stats.t.sf(abs(t), 2), rel=1e-9)
        half = stats.t.ppf(0.975, 2) * difference.std(ddof=1) / np.sqrt(3)
        interval = difference.mean() - half, difference.mean() + half
        assert (row["interval_low"], row["interval_high"]) == pytest.approx(interval, rel=1e-9)


def test_robustness_numbers(results: Path, made_of: SimpleNamespace) -> None:
    runs = last_rows(results / "three" / "lr")
    table = pd.read_csv(made_of.folder / "robustness.csv")
    assert len(table) == 4 * runs["lr"].nunique()
    for _, row in table.iterrows():
        same = (runs.lr == row["initial_step_size"]) & (runs.adam == (row["optimizer"] == "Adam"))
        part = runs[same & (runs.acme == bool(row["acme"]))]
        diverged = ~np.isfinite(part["test_loss"])
        assert row["diverged"] == diverged.sum() and row["seeds"] == (~diverged).sum()
        if diverged.all():
            assert np.isnan(row["error_mean"])
        else:
            assert row["error_mean"] == pytest.approx(100 * part["test_error"].mean(), rel=1e-12)
    text = (made_of.folder / "robustness.md").read_text()
    rows = {line.split(" | ")[0]: line.strip("| ").split(" | ") for line in text.splitlines()}
    for column, optimizer in ((1, "SGD"), (6, "Adam")):
        for place, acme in ((column, 0), (column + 1, 1)):
            part = table[(table.optimizer == optimizer) & (table.acme == acme)]
            means = part["error_mean"].dropna()
            some = "†" * (len(means) < 4)
            assert rows["| Best"][place] == f"{means.min():.2f}"
            assert rows["| Max − min"][place] == f"{means.max() - means.min():.2f}{some}"
            assert rows["| Evaluations"][place] == str(40 * (1 + acme))
            mine = runs[(runs.adam == (optimizer == "Adam")) & (runs.acme == bool(acme))]
            mine = mine[np.isfinite(mine["test_loss"])]
            assert rows["| Seconds"][place] == f"{mine['seconds'].mean():.1f}"
        for lr in (1e-4, 1e-2, 1.0):
            both = runs[(runs.lr == lr) & (runs.adam == (optimizer == "Adam"))].sort_values("seed")
            pair = [100 * both[both.acme == acme]["test_error"].to_numpy() for acme in (True, False)]
            test = stats.ttest_rel(*pair)
            interval = [f"{end:+.2f}".replace("-", "−") for end in test.confidence_interval(0.95)]
            mean = f"{np.mean(pair[0] - pair[1]):+.2f}".replace("-", "−")
            assert rows[f"| {lr:g}"][column + 2 : column + 5] == [mean, " to ".join(interval), "2"]
    assert "† over the starts from which a run finished." in text


def test_texts_show_the_numbers(made_of: SimpleNamespace) -> None:
    with (made_of.folder / "table.csv").open(newline="") as lines:
        numbers = list(csv.DictReader(lines))
    markdown = (made_of.folder / "table.md").read_text()
    latex = (made_of.folder / "table.tex").read_text()
    for row in numbers:
        mean, deviation = float(row["error_mean_acme"]), float(row["error_std_acme"])
        difference, low, high = (
            f"{float(row[name]):+.2f}".replace("-", "−")
            for name in ("difference", "interval_low", "interval_high")
        )
        start = f"| {row['optimizer']} | "
        line = next(line for line in markdown.splitlines() if line.startswith(start))
        assert f" | {mean:.2f} ± {deviation:.2f} | {difference} | {low} to {high} | 3 | " in line
        interval = f"{difference} & {low} to {high} & 3 & ".replace("−", "$-$")
        assert rf"{mean:.2f} $\pm$ {deviation:.2f} & {interval}" in re.sub(r"\\phantom\{.*?\}", "", latex)
        assert line.split(" | ")[1].split(" ± ")[0] in made_of.printed


@pytest.mark.parametrize("name", ["table", "robustness"])
def test_latex_is_well_formed(made_of: SimpleNamespace, name: str) -> None:
    text = (made_of.folder / f"{name}.tex").read_text()
    columns = re.search(r"\\begin\{tabular\*\}\{\\textwidth\}\{@\{.*?\}\}([lr]+)@\{\}\}", text)
    assert columns is not None
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.strip() and "rule" not in line]
    assert len(rows) == (2 + 8 if name == "table" else 2 + 4 + 4)
    for row in rows:
        assert row.endswith(r" \\")
        spanned = sum(int(count) - 1 for count in re.findall(r"\\multicolumn\{(\d+)\}", row))
        assert len(re.findall(r"(?<!\\)&", row)) + spanned == len(columns[1]) - 1
    assert re.findall(r"\\begin\{(\S+?)\}", text) == re.findall(r"\\end\{(\S+?)\}", text)[::-1]
    assert text.count("{") == text.count("}") and text.count("$") % 2 == 0
    assert text.isascii() and not re.search(r"(?<!\\)%", text.split("\n", 1)[1])


def test_latex_compiles(made_of: SimpleNamespace, tmp_path: Path) -> None:
    """In a two-column paper, within its width; those of the committed study as well."""
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("no pdflatex (Debian: texlive-latex-base, texlive-latex-recommended)")
    tables = [*made_of.folder.glob("*.tex"), *(ROOT / "figures" / "quick").glob("*.tex")]
    assert len(tables) == 5
    lines = [
        r"\documentclass[twocolumn]{article}",
        r"\usepackage[a4paper,margin=2cm]{geometry}\usepackage{booktabs}\begin{document}",
    ]
    for number, path in enumerate(tables):
        shutil.copy(path, tmp_path / f"{number}.tex")
        lines.append(rf"\input{{{number}}}\clearpage")
    (tmp_path / "all.tex").write_text("\n".join([*lines, r"\end{document}"]))
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "all.log").read_text()
    assert "Output written on all.pdf (5 pages" in log
    assert not [line for line in log.splitlines() if line.startswith(("Overfull", "Missing character"))]


def test_numbers_align(script: Any) -> None:
    module = script("make_tables")
    cells = ["9.81 ± 0.50*", "100.25 ± 12.25", "diverged", "+7.00", "1,234.5 ± 1", "—"]
    padded = [
        "".join("_" * len(text) if blank else text for text, blank in parts) for parts in module.pad(cells)
    ]
    assert padded == [
        "____9.81 ± _0.50*",
        "__100.25 ± 12.25_",
        "diverged",
        "___+7.00_________",
        "1,234.5_ ± _1____",
        "—",
    ]
    assert module.pad(["−0.50 to +12.25", "−13.00 to −1.25"]) == [
        [("0", True), ("−0.50", False), (" to ", False), ("+12.25", False)],
        [("−13.00", False), (" to ", False), ("0", True), ("−1.25", False)],
    ]


def test_latex_escapes(script: Any) -> None:
    module = script("make_tables")
    table = module.Table(
        "t",
        [module.Column("a_b"), module.Column("50 %")],
        [["#1 & 2", "—"]],
        "A $ {x} ~ ^ \\",
        ["α < β_1"],
        [],
    )
    text = module.latex(table, "s")
    assert r"a\_b & \multicolumn{1}{r}{50~\%} \\" in text and r"\#1 \& 2 & --- \\" in text
    assert r"A \$ \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}" in text
    assert r"$\alpha$ $<$" in text


# ── Captions, notes, summary ──────────────────────────────────────────────────────────────────────────


def test_caption_says_the_scale(made_of: SimpleNamespace) -> None:
    for words in (
        "WRN-10-2",
        "77,412 parameters",
        "CIFAR-100",
        "1,000 training images",
        "4 epochs",
        "batch size 100",
        "seeds 42, 43, 44",
        "Example CPU",
        "float32",
        "initial step size 0.1 (SGD) and 0.001 (Adam)",
        "mean ± standard deviation over seeds",
    ):
        assert words in (made_of.folder / "table.md").read_text().splitlines()[0]
        assert words in made_of.printed
    assert "synthetic" not in made_of.printed


def test_summary_says_what_won(made_of: SimpleNamespace) -> None:
    table = pd.read_csv(made_of.folder / "table.csv")
    better = table[table["difference"] < 0]["optimizer"].tolist()
    assert f"ACME has the lower error in {len(better)} of 8 pairs" in made_of.printed
    lowest = table[["error_mean_without", "error_mean_acme"]].min().min()
    assert re.search(rf"Lowest error: .*, {lowest:.2f} %\.", made_of.printed)
    significant = (table["p_value"] < 0.05).sum()
    assert f"{significant} of 8 paired tests give p < 0.05" in made_of.printed


def test_same_bytes_from_the_same_csvs(results: Path, made_of: SimpleNamespace, tmp_path: Path) -> None:
    make_tables(results, "three", tmp_path)
    assert sorted(path.name for path in made_of.folder.iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / "three" / name).read_bytes() == (made_of.folder / name).read_bytes()


# ── Studies with gaps ─────────────────────────────────────────────────────────────────────────────────


def test_bad_files_are_named_and_left_out(results: Path, made_of: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "three" / "table"
    shutil.copytree(results / "three" / "table", folder)
    names = ("cut", "nan", "lonely", "columns", "unfinished", "model")
    copies = {name: folder / f"{name}.csv" for name in names}
    for copy in copies.values():
        shutil.copy(folder / "sgd.seed42.csv", copy)
        shutil.copy(folder / "sgd.seed42.json", copy.with_suffix(".json"))
    copies["cut"].write_text(copies["cut"].read_text()[:-20])
    cells = copies["nan"].read_text().splitlines()
    cells[2] = ",".join([*cells[2].split(",")[:8], "nan", *cells[2].split(",")[9:]])
    copies["nan"].write_text("\n".join(cells) + "\n")
    copies["lonely"].with_suffix(".json").unlink()
    lines = copies["columns"].read_text().splitlines()
    copies["columns"].write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))
    about = json.loads(copies["unfinished"].with_suffix(".json").read_text())
    for name, changes in (
        ("unfinished", {"finished": False, "status": "running"}),
        ("model", {"options": {**about["options"], "model": "Pyramid", "depth": 110, "width_alpha": 200}}),
    ):
        copies[name].with_suffix(".json").write_text(json.dumps({**about, **changes}))
    done = make_tables(tmp_path / "results", "three", tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    text = (tmp_path / "three" / "table.md").read_text()
    for name in copies:
        assert f"{name}.csv is left out: " in done.stdout and f"- {name}.csv is left out: " in text
    # the numbers are those of the study without the bad files
    assert (tmp_path / "three" / "table.csv").read_bytes() == (made_of.folder / "table.csv").read_bytes()


def test_no_json_gives_a_traceback(made: SimpleNamespace, script: Any, tmp_path: Path) -> None:
    for name, options in (("odd", {}), ("acme", {"acme": True}), ("other", {"acme": True, "seed": 43})):
        made.run(tmp_path / "s" / "table" / f"{name}.csv", **options)
    tables = script("make_tables")
    side = tmp_path / "s" / "table" / "odd.json"
    good = json.loads(side.read_text())
    damaged = [
        "",
        "[]",
        "[" * 10**5,
        *(json.dumps({k: v for k, v in good.items() if k != key}) for key in good),
    ]
    for value in (None, "x", -1, 1.5, [], {}):
        damaged += [json.dumps({**good, key: value}) for key in good]
        options = good["options"]
        damaged += [json.dumps({**good, "options": {**options, key: value}}) for key in options]
    left_out = 0
    for text in damaged:
        side.write_text(text)
        (table, _), *_ = tables.tables_of(tmp_path, "s")[0]
        left_out += any("odd.csv is left out: " in note for note in table.notes)
    assert left_out > 150


def load(script: Any, results: Path, study: str = "s") -> tuple[Any, Any]:
    tables = script("make_tables")
    return tables, tables.main_table(tables.load_table(results, study))


def test_runs_of_another_scale_are_left_out(made: SimpleNamespace, script: Any, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "table"
    made.table(folder, (42,))
    made.run(folder / "longer.csv", seed=43, epochs=9)
    made.run(folder / "wider.csv", seed=43, width_alpha=4, adam=True, lr=0.001)
    made.run(folder / "steeper.csv", seed=43, adam=True, lr=0.5)
    made.run(folder / "twin.csv", seed=42)
    _, table = load(script, tmp_path)
    assert [row["seeds_without"] for row in table.numbers] == [1] * 8
    assert "longer.csv is left out: epochs is 9, most have 4." in table.notes
    assert "wider.csv is left out: width_alpha is 4, most have 2." in table.notes
    assert "steeper.csv is left out: lr is 0.5, most have 0.001." in table.notes
    assert "twin.csv is left out: the same run as sgd.seed42.csv." in table.notes


def test_as_many_of_two_scales_is_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "s" / "table"
    made.run(folder / "a.csv", epochs=2)
    made.run(folder / "b.csv", epochs=3)
    done = make_tables(tmp_path / "results", "s", tmp_path)
    assert done.returncode == 2 and "mixes runs that differ in epochs" in done.stderr
    assert "a.csv" in done.stderr and "b.csv" in done.stderr and "Traceback" not in done.stderr


def test_one_seed_has_neither_deviation_nor_test(made: SimpleNamespace, script: Any, tmp_path: Path) -> None:
    made.table(tmp_path / "s" / "table", (42,), dataset="synthetic")
    tables, table = load(script, tmp_path)
    assert {row[4] for row in table.cells} == {"one seed"}
    assert not any("±" in cell for row in table.cells for cell in row) and "±" not in table.caption
    assert "synthetic data (not CIFAR-100)" in table.caption
    assert all(row["p_value"] is None and row["error_std_acme"] is None for row in table.numbers)
    summary = tables.main_summary(tables.load_table(tmp_path, "s"))
    assert "One seed: no test tells these differences from chance." in summary


def test_missing_and_diverged_runs_are_said(made: SimpleNamespace, script: Any, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "table"
    made.table(folder, (42, 43, 44))
    for suffix in ("csv", "json"):
        (folder / f"sgd.seed44.{suffix}").unlink()
        for seed in (42, 43, 44):
            (folder / f"adam-asam.seed{seed}.{suffix}").unlink()
    made.run(folder / "sgd-nesterov.seed43.csv", 2, nesterov=True, seed=43)
    for seed in (42, 43, 44):
        made.run(folder / f"sgd-asam-acme.seed{seed}.csv", 1, asam=True, acme=True, seed=seed)
    _, table = load(script, tmp_path)
    rows = {row[0]: row for row in table.cells}
    numbers = {row["optimizer"]: row for row in table.numbers}
    assert numbers["SGD"]["pairs"] == 2 and rows["SGD"][5] == "2"
    assert "Missing: SGD, seed 44." in table.notes
    assert rows["Adam + ASAM"][1] == rows["Adam + ASAM"][3] == rows["Adam + ASAM"][4] == "—"
    assert "Missing: Adam + ASAM, seed 42, 43, 44." in table.notes
    assert rows["SGD + Nesterov"][1].endswith("*") and rows["SGD + Nesterov"][5] == "2"
    assert "* over the seeds that did not diverge." in table.notes
    kept = [100 * pd.read_csv(folder / f"sgd-nesterov.seed{s}.csv")["test_error"].iloc[-1] for s in (42, 44)]
    assert numbers["SGD + Nesterov"]["error_mean_without"] == pytest.approx(np.mean(kept))
    assert numbers["SGD + Nesterov"]["diverged_without"] == 1
    assert rows["SGD + ASAM"][2] == "diverged" and rows["SGD + ASAM"][7] == "—"
    assert "Diverged: SGD + ASAM + ACME from 0.1, seed 42, 43, 44." in table.notes


def test_equal_differences_have_no_test(made: SimpleNamespace, script: Any, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "table"
    for seed in (42, 43):
        for acme in (False, True):
            path = folder / f"sgd{'-acme' * acme}.seed{seed}.csv"
            made.run(path, seed=seed, acme=acme)
            lines = path.read_text().splitlines()
            cells = lines[-1].split(",")
            cells[9] = repr(0.5 if acme else 0.75)  # the last test error
            path.write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n")
    _, table = load(script, tmp_path)
    assert table.cells[0][1:5] == ["75.00 ± 0.00", "50.00 ± 0.00", "−25.00", "no spread"]


def test_equal_evaluations(made: SimpleNamespace, script: Any, tmp_path: Path) -> None:
    made.table(tmp_path / "s" / "table", (42, 43))
    folder = tmp_path / "s" / "equal"
    for seed in (42, 43):
        made.run(folder / f"sgd.seed{seed}.csv", seed=seed, epochs=8)
        made.run(folder / f"sgd-asam.seed{seed}.csv", seed=seed, asam=True, epochs=6)
    made.run(folder / "adam.seed42.csv", lr=0.001, adam=True, epochs=4)  # too short
    made.run(folder / "sgd-nesterov.seed42.csv", lr=0.3, nesterov=True, epochs=8)  # from elsewhere
    tables = script("make_tables")
    study = tables.load_table(tmp_path, "s")
    equal = tables.load_equal(tmp_path, "s", study)
    table = tables.equal_table(study, equal)
    numbers = {row["optimizer"]: row for row in table.numbers}
    for name, evaluations in (("SGD", 80), ("SGD + ASAM", 120)):
        assert numbers[name]["evaluations_without"] == numbers[name]["evaluations_acme"] == evaluations
        assert numbers[name]["pairs"] == 2
    errors = [
        [100 * pd.read_csv(path)["test_error"].iloc[-1] for path in sorted(where.glob(f"{name}.seed*.csv"))]
        for where, name in ((folder, "sgd"), (tmp_path / "s" / "table", "sgd-acme"))
    ]
    assert numbers["SGD"]["difference"] == pytest.approx(np.mean(errors[1]) - np.mean(errors[0]))
    notes = " ".join(table.notes)
    assert "adam.seed42.csv is left out: 40 evaluations, where ACME's run took 80." in notes
    assert "sgd-nesterov.seed42.csv is left out: it differs from the table's in nesterov, lr" in notes or (
        "sgd-nesterov.seed42.csv is left out: it differs from the table's in lr" in notes
    )
    assert "Missing: Adam." in notes


def test_devices_that_differ_are_said(made: SimpleNamespace, script: Any, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "table"
    made.table(folder, (42,))
    side = folder / "sgd.seed42.json"
    side.write_text(json.dumps({**json.loads(side.read_text()), "device": "Another GPU"}))
    _, table = load(script, tmp_path)
    assert "Another GPU and Example CPU" in table.caption
    assert any("their seconds do not compare" in note for note in table.notes)


def test_lr_study_leaves_other_optimizers_out(made: SimpleNamespace, script: Any, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "lr"
    made.lr(folder, (42,), (0.01, 1.0))
    made.run(folder / "odd.csv", asam=True)
    tables = script("make_tables")
    table = tables.robustness_table(tables.load_lr(tmp_path, "s"))
    assert [row[0] for row in table.cells] == ["0.01", "1", "Best", "Max − min", "Evaluations", "Seconds"]
    assert "odd.csv is left out: SGD + ASAM has no place over initial step sizes." in table.notes


def test_one_part_of_a_study_is_enough(made: SimpleNamespace, tmp_path: Path) -> None:
    made.run(tmp_path / "results" / "s" / "table" / "sgd.seed42.csv")
    done = make_tables(tmp_path / "results", "s", tmp_path)
    assert done.returncode == 0
    assert "No robustness: " in done.stdout and "sweep_lr.sh" in done.stdout
    assert sorted(os.listdir(tmp_path / "s")) == ["table.csv", "table.md", "table.tex"]


@pytest.mark.parametrize("script_name", ["make_tables", "plot_curves", "plot_robustness"])
def test_a_missing_or_empty_study_is_one_sentence(tmp_path: Path, script_name: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / f"{script_name}.py"), "--results", str(tmp_path)]
    done = subprocess.run([*command, "--study", "no"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and "no such study" in done.stderr


def test_a_study_without_finished_runs_says_why(made: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "results" / "s" / "table" / "sgd.seed42.csv"
    made.run(path)
    path.write_text(path.read_text()[:-9])
    done = make_tables(tmp_path / "results", "s", tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "holds no finished run" in done.stderr and "sgd.seed42.csv is left out" in done.stderr
    assert not (tmp_path / "s").exists()


def test_the_table_over_gain(made: SimpleNamespace, tmp_path: Path) -> None:
    """A row a combination, in order, with the last epoch's numbers; runs of another scale are named."""
    folder = tmp_path / "results" / "s" / "gain"
    for seed in (42, 43):
        made.run(folder / f"sgd.seed{seed}.csv", lr=3.0, seed=seed)
        for gain, every in ((1.0, 1), (3.0, 10)):
            name = f"sgd-acme.gain{gain:g}.every{every}.seed{seed}.csv"
            options = {"acme": True, "gain": gain, "adapt_every": every, "search_steps": every - 1}
            made.run(folder / name, lr=0.1, seed=seed, **options)
            for epochs in (2, 4):
                longer = tmp_path / "results" / "s" / "length" / f"{name[:-4]}.epochs{epochs}.csv"
                made.run(longer, lr=0.1, seed=seed, epochs=epochs, **options)
    kept = {"acme": True, "gain": 2.0, "adapt_steps": 60, "search_steps": 20}
    made.run(tmp_path / "results" / "t" / "gain" / "kept.csv", lr=0.1, **kept)
    made.run(tmp_path / "results" / "t" / "gain" / "throughout.csv", lr=0.1, acme=True)
    made.run(folder / "adam.csv", lr=0.001, acme=True, adam=True, gain=3.0, unbiased_squares=True)
    made.run(folder / "stray.csv", lr=0.1, acme=True, depth=16)
    command = [sys.executable, str(ROOT / "scripts" / "make_gain_table.py"), "--study", "s"]
    folders = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "figures")]
    printed = subprocess.run([*command, *folders], capture_output=True, text=True, check=True).stdout
    assert "stray.csv is left out: depth is 16" in printed
    table = pd.read_csv(tmp_path / "figures" / "s" / "gain.csv")
    assert list(zip(table.optimizer, table.gain, table.adapt_every, table.search_steps, table.seeds, strict=True)) == [
        ("SGD", 1, 1, 0, 2), ("SGD + ACME", 1, 1, 0, 2), ("SGD + ACME", 3, 10, 9, 2),
        ("Adam + ACME, unbiased squares", 3, 1, 0, 1),
    ]  # fmt: skip
    last = [pd.read_csv(path).iloc[-1] for path in sorted(folder.glob("sgd-acme.gain3*.csv"))]
    assert table.error_mean[2] == pytest.approx(100 * sum(row.test_error for row in last) / 2)
    assert table.evaluations[2] == last[0].evaluations
    made.run(tmp_path / "results" / "s" / "variants" / "a.csv", acme=True, acme_script="research.steady")
    subprocess.run([*command, *folders], capture_output=True, text=True, check=True)
    assert pd.read_csv(tmp_path / "figures" / "s" / "variants.csv").optimizer.tolist() == [
        "SGD + ACME, steady"
    ]
    lengths = pd.read_csv(tmp_path / "figures" / "s" / "length.csv")
    assert list(zip(lengths.epochs, lengths.gain, strict=True)) == [(2, 1), (2, 3), (4, 1), (4, 3)]
    subprocess.run([*command[:-1], "t", *folders], capture_output=True, text=True, check=True)
    table = pd.read_csv(tmp_path / "figures" / "t" / "gain.csv")
    assert table.adapt_steps.fillna(0).tolist() == [0, 60] and "adapt_every" not in table
    page = (tmp_path / "figures" / "t" / "gain.md").read_text()
    assert "| all |" in page and "looking ahead in the first steps only (adapt_steps)" in page
    assert {"gain.md", "length.md"} <= {path.name for path in (tmp_path / "figures" / "s").iterdir()}
