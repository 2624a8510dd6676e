"""The figures: which are drawn, from which numbers, and that they come out the same again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from study import pair_figures
from study.looks import save
from study.tables import load_pairs, load_starts
from study.titles import PAIRS, title

ROOT = Path(__file__).resolve().parents[2]
CURVES = [
    f"{ordinate}_{abscissa}"
    for ordinate in ("decisions", "step_size", "test_error", "train_loss")
    for abscissa in ("epoch", "evaluations", "seconds")
]
ROBUSTNESS = ["robustness_error", "robustness_step_size"]


@pytest.fixture(scope="module")
def figures(results: Path, tmp_path_factory: pytest.TempPathFactory, run_without_torch: Any) -> Path:
    out = tmp_path_factory.mktemp("figures")
    run_without_torch("make_figures", results, "three", out, hash_seed=1)
    return out / "three"


def test_all_figures_are_there(figures: Path) -> None:
    names = sorted(f"{name}.{suffix}" for name in CURVES + ROBUSTNESS for suffix in ("pdf", "png"))
    assert sorted(path.name for path in figures.iterdir()) == names
    for path in figures.iterdir():
        content = path.read_bytes()
        if path.suffix == ".pdf":
            assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
            assert b"/CreationDate" not in content
            assert b"/FontFile2" in content and b"/Type3" not in content  # TrueType, embedded
        else:
            assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")
            assert int.from_bytes(content[16:20], "big") == 1400  # 7 inches at 200 dots


def test_same_bytes_from_the_same_csvs(results: Path, figures: Path, tmp_path: Path) -> None:
    runs, lr = load_pairs(results / "three" / "table")[0], load_starts(results / "three" / "lr")[0]
    save(pair_figures.plot_pairs(runs, "seconds", "test_error"), tmp_path, "test_error_seconds")
    save(pair_figures.plot_decisions(runs, "epoch"), tmp_path, "decisions_epoch")
    save(pair_figures.plot_errors(lr), tmp_path, "robustness_error")
    save(pair_figures.plot_step_sizes(lr), tmp_path, "robustness_step_size")
    again = sorted(tmp_path.iterdir())
    assert len(again) == 8
    for path in again:
        assert path.read_bytes() == (figures / path.name).read_bytes(), path.name


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_no_backend_from_outside(results: Path, tmp_path: Path, backend: str) -> None:
    """As Jupyter and Colab set it, where that package is missing."""
    blocked = "import sys; sys.modules['matplotlib_inline'] = None; import runpy; sys.argv = sys.argv[1:]; "
    blocked += (
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    made_up = tmp_path / "results" / "one"
    made_up.mkdir(parents=True)
    (made_up / "lr").symlink_to(results / "three" / "lr")
    done = subprocess.run(
        [sys.executable, "-c", blocked, str(ROOT / "scripts" / "make_figures.py"), "--study", "one",
         "--results", str(tmp_path / "results"), "--out", str(tmp_path)],
        env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one" / "robustness_error.png").exists()


def test_a_figure_that_cannot_be_written_is_said(results: Path, figures: Path, tmp_path: Path) -> None:
    """Though earlier figures are there."""
    out = tmp_path / "three"
    out.mkdir()
    (out / "old.png").touch()
    (out / "robustness_error.png").mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_figures.py"), "--study", "three", "--results", str(results),
         "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        f"{out}/robustness_error.png: cannot be written (Is a directory).\n",
    )


def test_tables_do_not_import_torch(results: Path, tmp_path: Path, run_without_torch: Any) -> None:
    run_without_torch("make_tables", results, "three", tmp_path, hash_seed=0)


def frames(folder: Path, pattern: str) -> list[pd.DataFrame]:
    return [pd.read_csv(path) for path in sorted(folder.glob(pattern))]


@pytest.mark.parametrize("abscissa", ["epoch", "evaluations", "seconds"])
def test_curves_show_the_mean_and_the_band(results: Path, abscissa: str) -> None:
    figure = pair_figures.plot_pairs(load_pairs(results / "three" / "table")[0], abscissa, "test_error")
    axes = next(axes for axes in figure.axes if axes.get_title() == "Adam + Nesterov")
    for line, band, name in zip(
        axes.lines, axes.collections, ("adam-nesterov", "adam-nesterov-acme"), strict=True
    ):
        runs = frames(results / "three" / "table", f"{name}.seed*.csv")
        assert len(runs) == 3
        errors = 100 * np.array([frame["test_error"] for frame in runs])
        np.testing.assert_allclose(line.get_ydata(), errors.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(line.get_xdata(), np.mean([frame[abscissa] for frame in runs], axis=0))
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((errors.min(), errors.max()))
    assert len(figure.axes) == 8
    assert {axes.get_title() for axes in figure.axes} == set(map(title, PAIRS))
    assert "seeds 42, 43, 44" in figure.get_suptitle().replace("\n", " ")


def test_decisions_fill_the_panel(results: Path) -> None:
    figure = pair_figures.plot_decisions(load_pairs(results / "three" / "table")[0], "evaluations")
    layers = figure.axes[0].patches
    runs = frames(results / "three" / "table", "sgd-acme.seed*.csv")
    names = [*(f"share_{code}" for code in range(8)), "share_nonfinite"]
    base = np.zeros(4)
    for layer, name in zip(layers, names, strict=True):
        top, edges, bottom = layer.get_data()
        np.testing.assert_allclose(bottom, base)
        np.testing.assert_allclose(top - bottom, 100 * np.mean([frame[name] for frame in runs], axis=0))
        np.testing.assert_allclose(edges, [0, 20, 40, 60, 80])
        base = top
    np.testing.assert_allclose(base, 100)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label[0] for label in labels] == [*"01234567", "n"]


def test_diverged_runs_end_in_a_cross(made: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "table"
    made.run(folder / "sgd.a.csv", seed=42)
    made.run(folder / "sgd.b.csv", 3, seed=43)
    figure = pair_figures.plot_pairs(load_pairs(tmp_path / "s" / "table")[0], "epoch", "train_loss")
    axes = figure.axes[0]
    mean, lost, cross = axes.lines
    assert list(mean.get_xdata()) == [1, 2, 3, 4]  # of the finished run alone
    assert list(lost.get_xdata()) == [1, 2]  # as far as its loss was finite
    assert list(cross.get_xdata()) == [2] and cross.get_marker() == "x"
    assert axes.get_title() == "SGD\nwithout: 1 of 2 diverged"


def test_a_missing_seed_is_said(made: SimpleNamespace, tmp_path: Path) -> None:
    for name, options in (
        ("sgd.seed42", {"seed": 42}),
        ("sgd-acme.seed42", {"seed": 42, "acme": True}),
        ("sgd-acme.seed43", {"seed": 43, "acme": True}),
    ):
        made.run(tmp_path / "s" / "table" / f"{name}.csv", **options)
    figure = pair_figures.plot_pairs(load_pairs(tmp_path / "s" / "table")[0], "epoch", "test_error")
    assert figure.axes[0].get_title() == "SGD\nwithout: 1 of 2 seeds"


def test_robustness_marks_what_diverged(results: Path) -> None:
    figure = pair_figures.plot_errors(load_starts(results / "three" / "lr")[0])
    for axes, name in zip(figure.axes, ("sgd", "adam"), strict=True):
        assert axes.get_xscale() == "log"
        curves = {container.lines[0].get_linestyle(): container.lines[0] for container in axes.containers}
        for style, acme, lrs in (("--", "", (1e-4, 1e-2, 1)), ("-", "-acme", (1e-4, 1e-2, 1, 100))):
            expected = [
                np.mean([frame["test_error"].iloc[-1] for frame in frames(results / "three" / "lr", pattern)])
                for pattern in (f"{name}{acme}.lr{lr:g}.seed*.csv" for lr in lrs)
            ]
            np.testing.assert_allclose(curves[style].get_xdata(orig=False), lrs)
            np.testing.assert_allclose(curves[style].get_ydata(orig=False), 100 * np.array(expected))
        crosses = [line for line in axes.lines if line.get_marker() == "x"]
        assert [list(line.get_xdata()) for line in crosses] == [[100], []]
        assert crosses[0].get_ydata()[0] > 100
        assert max(axes.get_yticks()) <= 100
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert "smallest to largest over seeds" in labels
        chance = [line for line in axes.lines if list(line.get_ydata()) == [99, 99]]
        assert len(chance) == 1


def test_trajectories_begin_at_the_initial_step_size(results: Path) -> None:
    figure = pair_figures.plot_step_sizes(load_starts(results / "three" / "lr")[0])
    for axes, name in zip(figure.axes, ("sgd", "adam"), strict=True):
        assert axes.get_yscale() == "log"
        assert [line.get_ydata()[0] for line in axes.lines] == [1e-4, 1e-2, 1, 100]
        assert all(line.get_xdata()[0] == 0 for line in axes.lines)
        last = [
            frame["step_size"].iloc[-1]
            for frame in frames(results / "three" / "lr", f"{name}-acme.lr1.*.csv")
        ]
        assert axes.lines[2].get_ydata()[-1] == pytest.approx(np.mean(last))


def test_one_seed_and_one_epoch_can_be_drawn(made: SimpleNamespace, tmp_path: Path) -> None:
    made.table(tmp_path / "s" / "table", (42,), epochs=1, dataset="synthetic")
    made.lr(tmp_path / "s" / "lr", (42,), (0.1,), epochs=1, dataset="synthetic")
    table, lr = load_pairs(tmp_path / "s" / "table")[0], load_starts(tmp_path / "s" / "lr")[0]
    for figure in (
        pair_figures.plot_pairs(table, "epoch", "step_size"),
        pair_figures.plot_decisions(table, "epoch"),
        pair_figures.plot_errors(lr),
        pair_figures.plot_step_sizes(lr),
    ):
        assert "synthetic data (not CIFAR-100)" in figure.get_suptitle().replace("\n", " ")
        assert "over seeds" not in figure.get_suptitle()


def test_text_is_large_enough_to_print(results: Path) -> None:
    figure = pair_figures.plot_pairs(load_pairs(results / "three" / "table")[0], "epoch", "step_size")
    from matplotlib.text import Text

    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(texts) > 20 and min(text.get_fontsize() for text in texts) >= 7
    assert figure.get_figwidth() == 7
