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
from study.collect import tables_of
from study.tables import equal_table, main_table, starts_table
from study.write import Table

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


def cells(path: Path) -> list[list[str]]:
    """The rows of a Markdown table, without its header."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


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
        for side, acme in (("without", False), ("with", True)):
            part = base[base.acme == acme].sort_values("seed")
            sides[side] = errors = 100 * part["test_error"].to_numpy()
            assert len(errors) == row[f"{side}_seeds"] == 3 and row[f"{side}_diverged"] == 0
            assert row[f"{side}_error_mean"] == pytest.approx(np.mean(errors), rel=1e-12)
            assert row[f"{side}_error_std"] == pytest.approx(np.std(errors, ddof=1), rel=1e-9)
            assert row[f"{side}_evaluations"] == 40 * (1 + asam + acme)
            assert row[f"{side}_seconds"] == pytest.approx(part["seconds"].mean(), rel=1e-12)
        difference = sides["with"] - sides["without"]
        assert row["difference"] == pytest.approx(difference.mean(), rel=1e-9)
        # the paired t-test, written out
        t = difference.mean() / (difference.std(ddof=1) / np.sqrt(3))
        assert row["pairs"] == 3 and row["p_value"] == pytest.approx(2 * stats.t.sf(abs(t), 2), rel=1e-9)
        half = stats.t.ppf(0.975, 2) * difference.std(ddof=1) / np.sqrt(3)
        interval = difference.mean() - half, difference.mean() + half
        assert (row["interval_low"], row["interval_high"]) == pytest.approx(interval, rel=1e-9)


def test_robustness_numbers(results: Path, made_of: SimpleNamespace) -> None:
    runs = last_rows(results / "three" / "lr")
    table = pd.read_csv(made_of.folder / "robustness.csv").set_index("lr")
    assert len(table) == runs["lr"].nunique()
    rows = {row[0]: row for row in cells(made_of.folder / "robustness.md")}
    for column, base in ((1, "sgd"), (6, "adam")):
        mine = runs[runs.adam == (base == "adam")]
        for place, side in ((column, "without"), (column + 1, "with")):
            part = mine[mine.acme == (side == "with")]
            lost = ~np.isfinite(part["test_loss"])
            means = 100 * part[~lost].groupby("lr")["test_error"].mean()
            for lr, row in table.iterrows():
                here = part[part.lr == lr]
                diverged = ~np.isfinite(here["test_loss"])
                assert row[f"{base}_{side}_diverged"] == diverged.sum()
                assert row[f"{base}_{side}_seeds"] == (~diverged).sum()
                expected = np.nan if diverged.all() else means[lr]
                assert row[f"{base}_{side}_error_mean"] == pytest.approx(expected, rel=1e-12, nan_ok=True)
            some = "†" * (len(means) < 4)
            assert rows["Best"][place] == f"{means.min():.2f}"
            assert rows["Max − min"][place] == f"{means.max() - means.min():.2f}{some}"
            assert rows["Evaluations"][place] == str(40 * (1 + (side == "with")))
            assert rows["Seconds"][place] == f"{part[~lost]['seconds'].mean():.1f}"
        for lr in (1e-4, 1e-2, 1.0):
            both = mine[mine.lr == lr].sort_values("seed")
            pair = [100 * both[both.acme == acme]["test_error"].to_numpy() for acme in (True, False)]
            interval = map(signed, stats.ttest_rel(*pair).confidence_interval(0.95))
            expected = [signed(np.mean(pair[0] - pair[1])), " to ".join(interval), "2"]
            assert rows[f"{lr:g}"][column + 2 : column + 5] == expected
    assert "† over the starts from which a run finished." in (made_of.folder / "robustness.md").read_text()


def test_texts_show_the_numbers(made_of: SimpleNamespace) -> None:
    with (made_of.folder / "table.csv").open(newline="") as lines:
        numbers = list(csv.DictReader(lines))
    rows = {row[0]: row for row in cells(made_of.folder / "table.md")}
    latex = (made_of.folder / "table.tex").read_text()
    for row in numbers:
        error = f"{float(row['with_error_mean']):.2f} ± {float(row['with_error_std']):.2f}"
        difference, low, high = (
            signed(float(row[name])) for name in ("difference", "interval_low", "interval_high")
        )
        assert rows[row["optimizer"]][2:6] == [error, difference, f"{low} to {high}", "3"]
        interval = f"{low} to {high}".replace("−", "$-$")
        tex = f"{error} & {difference} & {{{interval}}} & 3 & ".replace("±", r"\pm").replace("−", "-")
        assert tex in latex and error in made_of.printed


@pytest.mark.parametrize("name", ["table", "robustness"])
def test_latex_is_well_formed(made_of: SimpleNamespace, name: str) -> None:
    text = (made_of.folder / f"{name}.tex").read_text()
    (columns,) = re.findall(r"\\begin\{tabular\}\{(.*)\}", text)
    count = len(re.sub(r"\[.*?\]", "", columns))
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.strip() and "rule" not in line]
    assert len(rows) == (2 + 8 if name == "table" else 2 + 4 + 4)
    for row in rows:
        assert row.endswith(r" \\")
        spanned = sum(int(number) - 1 for number in re.findall(r"\\multicolumn\{(\d+)\}", row))
        assert len(re.findall(r"(?<!\\)&", row)) + spanned == count - 1
    assert re.findall(r"\\begin\{(\S+?)\}", text) == re.findall(r"\\end\{(\S+?)\}", text)[::-1]
    assert text.count("{") == text.count("}") and text.count("$") % 2 == 0
    assert text.isascii() and not re.search(r"(?<!\\)%", text.split("\n", 1)[1])


def test_latex_compiles(made_of: SimpleNamespace, tmp_path: Path) -> None:
    """In a two-column paper, within its width; those of the committed studies as well."""
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("no pdflatex (Debian: texlive-latex-recommended, texlive-science)")
    tables = [*made_of.folder.glob("*.tex"), *(ROOT / "figures").glob("*/*.tex")]
    lines = [
        r"\documentclass[twocolumn]{article}\usepackage[a4paper,margin=2cm]{geometry}",
        r"\usepackage{booktabs,graphicx,siunitx}\begin{document}",
    ]
    for number, path in enumerate(tables):
        shutil.copy(path, tmp_path / f"{number}.tex")
        lines.append(rf"\input{{{number}}}\clearpage")
    (tmp_path / "all.tex").write_text("\n".join([*lines, r"\end{document}"]))
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "all.log").read_text()
    assert not [line for line in log.splitlines() if line.startswith(("Overfull", "Missing character"))]


def table_of(rows: list[list[str]], **more: Any) -> Table:
    columns = pd.MultiIndex.from_tuples([("", "a_b"), ("50 %", "c"), ("50 %", "d")])
    return Table("t", "T", "A $ {x} ~ ^ \\", pd.DataFrame(rows, columns=columns), pd.DataFrame(), **more)


def test_latex_escapes_and_aligns() -> None:
    rows = [["#1 & 2", "—", "+1.50 to 2"], ["x", "1,200.5 ± 10.25*", "0"], ["y", "−3.25", "α"]]
    text = table_of(rows, notes=["α < β_1"], footer=1).latex("s")
    assert r"{\#1 \& 2} & {---} & {+1.50 to 2} \\" in text
    assert r"{x} & 1200.5 \pm 10.25 {*} & 0 \\" in text
    assert "\\midrule\n" + r"{y} & -3.25 & {$\alpha$} \\" in text
    assert r"S[table-format=+4.2(4), table-space-text-post={*}]S[table-format=1.0]" in text
    assert r"{a\_b} & {c} & {d}" in text and r"\multicolumn{2}{c}{50 \%}" in text
    assert r"A \$ \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}" in text
    assert r"$\alpha$ $<$" in text


def test_html_escapes() -> None:
    page = table_of([["a < b", "—", "<b>"]]).html()
    assert "a &lt; b" in page and "<b>" not in page and 'colspan="2"' in page


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
    assert f"ACME has the lower error in {len(better)} of 8" in made_of.printed
    lowest = table[["without_error_mean", "with_error_mean"]].min().min()
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


def test_no_json_gives_a_traceback(made: SimpleNamespace, tmp_path: Path) -> None:
    for name, options in (
        ("sgd", {}),
        ("sgd-acme", {"acme": True}),
        ("sgd-acme.b", {"acme": True, "seed": 43}),
    ):
        made.run(tmp_path / "s" / "table" / f"{name}.csv", **options)
    side = tmp_path / "s" / "table" / "sgd.json"
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
        (table,), _ = tables_of(tmp_path, "s")
        left_out += any("sgd.csv is left out: " in note for note in table.notes)
    assert left_out > 150


def numbers_of(table: Table) -> dict[str, dict[str, Any]]:
    return {row["optimizer"]: row for row in table.numbers.to_dict("records")}


def rows_of(table: Table) -> dict[str, list[str]]:
    return {row[0]: row for row in table.frame.to_numpy().tolist()}


def test_runs_of_another_scale_are_left_out(made: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "table"
    made.table(folder, (42, 44))
    made.run(folder / "sgd.longer.csv", seed=43, epochs=9)
    made.run(folder / "adam.wider.csv", seed=43, width_alpha=4, adam=True, lr=0.001)
    made.run(folder / "adam.steeper.csv", seed=43, adam=True, lr=0.5)
    made.run(folder / "sgd.twin.csv", seed=42)
    made.run(folder / "sgd-slow.csv", seed=42)
    table = main_table(tmp_path, "s")
    assert table.numbers["without_seeds"].tolist() == [2] * 8
    assert "sgd.longer.csv is left out: epochs is 9, most have 4." in table.notes
    assert "adam.wider.csv is left out: width_alpha is 4, most have 2." in table.notes
    assert "adam.steeper.csv is left out: lr is 0.5, most have 0.001." in table.notes
    assert "sgd.twin.csv is left out: the same run as sgd.seed42.csv." in table.notes
    assert "sgd-slow.csv is left out: sgd-slow has no place here." in table.notes


def test_as_many_of_two_scales_is_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "s" / "table"
    made.run(folder / "a.csv", epochs=2)
    made.run(folder / "b.csv", epochs=3)
    done = make_tables(tmp_path / "results", "s", tmp_path)
    assert done.returncode == 2 and "mixes runs that differ in epochs" in done.stderr
    assert "a.csv" in done.stderr and "b.csv" in done.stderr and "Traceback" not in done.stderr


def test_one_seed_has_neither_deviation_nor_test(made: SimpleNamespace, tmp_path: Path) -> None:
    made.table(tmp_path / "s" / "table", (42,), dataset="synthetic")
    table = main_table(tmp_path, "s")
    assert {row[4] for row in rows_of(table).values()} == {"one seed"}
    assert "±" not in table.text("pipe") and "±" not in table.caption
    assert "synthetic data (not CIFAR-100)" in table.caption
    assert table.numbers["p_value"].isna().all() and table.numbers["with_error_std"].isna().all()
    assert "One seed: no test tells these differences from chance." in table.summary


def test_missing_and_diverged_runs_are_said(made: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "table"
    made.table(folder, (42, 43, 44))
    for suffix in ("csv", "json"):
        (folder / f"sgd.seed44.{suffix}").unlink()
        for seed in (42, 43, 44):
            (folder / f"adam-asam.seed{seed}.{suffix}").unlink()
    made.run(folder / "sgd-nesterov.seed43.csv", 2, nesterov=True, seed=43)
    for seed in (42, 43, 44):
        made.run(folder / f"sgd-asam-acme.seed{seed}.csv", 1, asam=True, acme=True, seed=seed)
    table = main_table(tmp_path, "s")
    rows, numbers = rows_of(table), numbers_of(table)
    assert numbers["SGD"]["pairs"] == 2 and rows["SGD"][5] == "2"
    assert "Missing: SGD, 1 of 3 runs." in table.notes
    assert rows["Adam + ASAM"][1] == rows["Adam + ASAM"][3] == rows["Adam + ASAM"][4] == "—"
    assert "Missing: Adam + ASAM, 3 of 3 runs." in table.notes
    assert rows["SGD + Nesterov"][1].endswith("*") and rows["SGD + Nesterov"][5] == "2"
    assert "* over the seeds that did not diverge." in table.notes
    kept = [100 * pd.read_csv(folder / f"sgd-nesterov.seed{s}.csv")["test_error"].iloc[-1] for s in (42, 44)]
    assert numbers["SGD + Nesterov"]["without_error_mean"] == pytest.approx(np.mean(kept))
    assert numbers["SGD + Nesterov"]["without_diverged"] == 1
    assert rows["SGD + ASAM"][2] == "diverged" and rows["SGD + ASAM"][7] == "—"
    assert "Diverged: SGD + ASAM + ACME from 0.1 (3)." in table.notes


def test_equal_differences_have_no_test(made: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "table"
    for seed in (42, 43):
        for acme in (False, True):
            path = folder / f"sgd{'-acme' * acme}.seed{seed}.csv"
            made.run(path, seed=seed, acme=acme)
            lines = path.read_text().splitlines()
            cells = lines[-1].split(",")
            cells[9] = repr(0.5 if acme else 0.75)  # the last test error
            path.write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n")
    assert rows_of(main_table(tmp_path, "s"))["SGD"][1:5] == [
        "75.00 ± 0.00",
        "50.00 ± 0.00",
        "−25.00",
        "no spread",
    ]


def test_equal_evaluations(made: SimpleNamespace, tmp_path: Path) -> None:
    made.table(tmp_path / "s" / "table", (42, 43))
    folder = tmp_path / "s" / "equal"
    for seed in (42, 43):
        made.run(folder / f"sgd.seed{seed}.csv", seed=seed, epochs=8)
        made.run(folder / f"sgd-asam.seed{seed}.csv", seed=seed, asam=True, epochs=6)
    made.run(folder / "adam.seed42.csv", lr=0.001, adam=True, epochs=4)  # too short
    made.run(folder / "sgd-nesterov.seed42.csv", lr=0.3, nesterov=True, epochs=8)  # from elsewhere
    table = equal_table(tmp_path, "s")
    numbers = numbers_of(table)
    for name, evaluations in (("SGD", 80), ("SGD + ASAM", 120)):
        assert numbers[name]["without_evaluations"] == numbers[name]["with_evaluations"] == evaluations
        assert numbers[name]["pairs"] == 2
    errors = [
        [100 * pd.read_csv(path)["test_error"].iloc[-1] for path in sorted(where.glob(f"{name}.seed*.csv"))]
        for where, name in ((folder, "sgd"), (tmp_path / "s" / "table", "sgd-acme"))
    ]
    assert numbers["SGD"]["difference"] == pytest.approx(np.mean(errors[1]) - np.mean(errors[0]))
    assert "adam.seed42.csv is left out: 40 evaluations, where ACME's run took 80." in table.notes
    assert "sgd-nesterov.seed42.csv is left out: it differs from the table's in lr." in table.notes
    assert "Missing: Adam, 2 of 2 runs." in table.notes


def test_devices_that_differ_are_said(made: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "table"
    made.table(folder, (42,))
    side = folder / "sgd.seed42.json"
    side.write_text(json.dumps({**json.loads(side.read_text()), "device": "Another GPU"}))
    table = main_table(tmp_path, "s")
    assert "Another GPU and Example CPU" in table.caption
    assert any("their seconds do not compare" in note for note in table.notes)


def test_starts_leave_other_optimizers_out(made: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "lr"
    made.lr(folder, (42,), (0.01, 1.0))
    made.run(folder / "sgd-asam.lr1.csv", asam=True, lr=1.0)
    table = starts_table(tmp_path, "s")
    assert list(rows_of(table)) == ["0.01", "1", "Best", "Max − min", "Evaluations", "Seconds"]
    assert "sgd-asam.lr1.csv is left out: sgd-asam has no place here." in table.notes


def test_one_part_of_a_study_is_enough(made: SimpleNamespace, tmp_path: Path) -> None:
    made.run(tmp_path / "results" / "s" / "table" / "sgd.seed42.csv")
    done = make_tables(tmp_path / "results", "s", tmp_path)
    assert done.returncode == 0
    assert sorted(os.listdir(tmp_path / "s")) == ["table.csv", "table.md", "table.tex"]


@pytest.mark.parametrize("script_name", ["make_tables", "make_figures", "make_report"])
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


def test_a_table_of_options_has_validation_errors_of_what_did_not_diverge(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    folder = tmp_path / "results" / "s" / "gain"
    made.run(folder / "sgd-acme.gain1.seed42.csv", acme=True, validation=500)
    made.run(folder / "sgd-acme.gain9.seed42.csv", 1, acme=True, validation=500, gain=9.0)
    done = make_tables(tmp_path / "results", "s", tmp_path)
    assert done.returncode == 0, done.stderr
    fine, lost = cells(tmp_path / "s" / "gain.md")
    frame = pd.read_csv(folder / "sgd-acme.gain1.seed42.csv")
    assert (fine[5], lost[5]) == (f"{100 * frame.validation_error.iloc[-1]:.2f}", "—")


def test_a_table_of_options(made: SimpleNamespace, tmp_path: Path) -> None:
    """A row a combination, a column an option in which runs of one key differ; runs of another scale are named."""
    folder = tmp_path / "results" / "s" / "gain"
    for seed in (42, 43):
        for lr in (1.0, 3.0):
            made.run(folder / f"sgd.lr{lr:g}.seed{seed}.csv", lr=lr, seed=seed)
        for gain, steps in ((1.0, None), (3.0, 60)):
            options = {"acme": True, "gain": gain, "adapt_steps": steps, "search_steps": 20 * (gain > 1)}
            made.run(folder / f"sgd-acme.gain{gain:g}.seed{seed}.csv", lr=0.1, seed=seed, **options)
    unbiased = {"acme": True, "adam": True, "gain": 3.0, "unbiased_squares": True}
    made.run(folder / "adam-acme-slow.seed42.csv", lr=0.001, **unbiased)
    made.run(folder / "adam-acme-slow.averaged.seed42.csv", lr=0.001, average_weights=True, **unbiased)
    made.run(folder / "stray.csv", lr=0.1, acme=True, depth=16)
    done = make_tables(tmp_path / "results", "s", tmp_path)
    assert done.returncode == 0 and "stray.csv is left out: depth is 16" in done.stdout
    assert [row[:5] for row in cells(tmp_path / "s" / "gain.md")] == [
        ["SGD + ACME", "0.1", "1", "not set", "0"],
        ["SGD + ACME", "0.1", "3", "60", "20"],
        ["Adam + ACME, slow", "0.001", "3", "not set", "0"],
        ["Adam + ACME, slow, average_weights", "0.001", "3", "not set", "0"],
        ["SGD", "1", "—", "—", "—"],
        ["SGD", "3", "—", "—", "—"],
    ]
    table = pd.read_csv(tmp_path / "s" / "gain.csv")
    assert table.seeds.tolist() == [2, 2, 1, 1, 2, 2]
    last = [pd.read_csv(path).iloc[-1] for path in sorted(folder.glob("sgd-acme.gain3*.csv"))]
    assert table.error_mean[1] == pytest.approx(100 * sum(row.test_error for row in last) / 2)
    assert table.evaluations[1] == last[0].evaluations
    page = (tmp_path / "s" / "gain.md").read_text()
    assert "- Adam + ACME, slow: acme, adam, gain 3, unbiased_squares." in page


LATIN = {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("script", ["make_tables", "make_figures", "make_report", "make_overview"])
def test_an_output_that_cannot_say_it_stops_nothing(results: Path, tmp_path: Path, script: str) -> None:
    """Neither the help nor the files, which are UTF-8 in every locale."""
    path = str(ROOT / "scripts" / f"{script}.py")
    environment = {**os.environ, **LATIN}
    helped = subprocess.run(
        [sys.executable, path, "--help"], env=environment, capture_output=True, check=False
    )
    assert helped.returncode == 0 and b"usage" in helped.stdout
    if script != "make_tables":
        return
    options = ["--results", str(results), "--study", "three", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, path, *options], env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and b"?" in done.stdout, done.stderr.decode()
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == FILES
    assert "±" in (tmp_path / "three" / "table.md").read_text(encoding="utf-8")
