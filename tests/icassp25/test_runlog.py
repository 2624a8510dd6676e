"""The run log: what is written, when, and what reading refuses."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icassp25 import runlog
from icassp25.config import RunConfig, UsageError
from icassp25.runlog import Row, RunLog, UnusableRun, columns, read_run, read_study, settled

SIDECAR: dict[str, Any] = {
    "versions": {"torch": "2.0"},
    "commit": "abc1234",
    "device": "Example CPU",
    "parameters": 77412,
}
SHARES = (0.1, 0.2, 0.0, 0.3, 0.0, 0.2, 0.1, 0.05, 0.05)
CONFIG = RunConfig(epochs=3, train_images=1000, batch_size=100, acme=True, resume=True)


def row(epoch: int, **values: Any) -> Row:
    defaults = {
        "steps": 10 * epoch,
        "evaluations": 20 * epoch,
        "seconds": 1.3 * epoch,
        "lr": 0.1,
        "step_size": 0.1 / 3 / epoch,
        "train_loss": 4.5 / epoch,
        "train_error": 1 - 0.1 * epoch,
        "test_loss": 4.4 / epoch,
        "test_error": 1 - 0.2 * epoch,
        "shares": SHARES,
    }
    return Row(**{"epoch": epoch, **defaults, **values})


def finished(path: Path, config: RunConfig = CONFIG, **last: Any) -> None:
    log = RunLog(path, config, SIDECAR)
    for epoch in range(1, config.epochs + 1):
        shares = {"shares": SHARES if config.acme else None}
        log.append(row(epoch, **shares, **(last if epoch == config.epochs else {})))
    log.finish()


def sidecar(path: Path) -> dict[str, Any]:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    return json.loads(path.with_suffix(".json").read_text(), parse_constant=refuse)


# ── Writing ───────────────────────────────────────────────────────────────────────────────────────────


def test_columns_are_the_specified_ones() -> None:
    expected = ["epoch", "steps", "evaluations", "seconds", "lr", "step_size"]
    expected += ["train_loss", "train_error", "test_loss", "test_error"]
    expected += ["share_0", "share_1", "share_2", "share_3", "share_4", "share_5", "share_6", "share_7"]
    expected += ["share_nonfinite"]
    assert list(columns(CONFIG)) == expected
    held_out = replace(CONFIG, validation=1000)
    assert list(columns(held_out)) == [*expected, "validation_loss", "validation_error"]


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.csv"
    log = RunLog(path, CONFIG, SIDECAR)
    assert path.read_text() == ",".join(columns(CONFIG)) + "\n"
    assert (sidecar(path)["status"], sidecar(path)["rows"]) == ("running", 0)
    log.append(row(1))
    log.append(row(2))
    with path.open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [line["epoch"] for line in table] == ["1", "2"]
    assert table[1]["step_size"] == repr(0.1 / 3 / 2)
    assert [float(table[1][name]) for name in runlog.SHARES] == list(SHARES)
    assert (sidecar(path)["status"], sidecar(path)["rows"], sidecar(path)["finished"]) == (
        "running",
        2,
        False,
    )


def test_shares_stay_empty_without_acme_and_validation_follows(tmp_path: Path) -> None:
    config = replace(CONFIG, acme=False, validation=1000)
    log = RunLog(tmp_path / "run.csv", config, SIDECAR)
    log.append(row(1, shares=None, validation_loss=4.25, validation_error=0.875))
    cells = (tmp_path / "run.csv").read_text().splitlines()[1].split(",")
    assert cells[10:] == [""] * 9 + ["4.25", "0.875"]


def test_json_says_what_was_run(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    finished(path)
    content = sidecar(path)
    assert content["status"] == "finished" and content["finished"] is True and content["rows"] == 3
    assert RunConfig.from_dict(content["options"]) == CONFIG
    assert content["seed"] == CONFIG.seed and content["steps_per_epoch"] == 10
    assert content["host_cores"] == os.cpu_count()
    assert {name: content[name] for name in SIDECAR} == SIDECAR
    assert datetime.fromisoformat(content["start"]).utcoffset() == timedelta(0)
    assert 0 <= content["duration"] < 60


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("column", ["train_loss", "test_loss"])
def test_divergence_is_a_result(tmp_path: Path, loss: float, column: str) -> None:
    path = tmp_path / "run.csv"
    log = RunLog(path, CONFIG, SIDECAR)
    log.append(row(1))
    log.append(row(2, **{column: loss}))
    log.finish()
    assert f",{loss!r}," in path.read_text().splitlines()[2]
    assert (sidecar(path)["status"], sidecar(path)["finished"]) == ("diverged", True)
    run = read_run(path)
    assert run.diverged and not math.isfinite(run.frame[column].iloc[-1])


def test_resuming_rewrites_the_csv_from_the_checkpoint(tmp_path: Path) -> None:
    path, whole = tmp_path / "run.csv", tmp_path / "whole.csv"
    finished(whole)
    log = RunLog(path, CONFIG, SIDECAR)
    for epoch in (1, 2):
        log.append(row(epoch))
    before = sidecar(path)
    content = {**before, "duration": 1000.0, "start": "2024-01-02T03:04:05+00:00"}
    path.with_suffix(".json").write_text(json.dumps(content))
    path.write_text(path.read_text() + "3,what a killed process")

    kept = [Row(**json.loads(json.dumps(asdict(row(1)))))]  # as a checkpoint would hold it
    log = RunLog(path, CONFIG, SIDECAR, kept)
    assert path.read_text() == "".join(whole.read_text().splitlines(keepends=True)[:2])
    for epoch in (2, 3):
        log.append(row(epoch))
    log.finish()
    assert path.read_bytes() == whole.read_bytes()
    assert sidecar(path)["start"] == "2024-01-02T03:04:05+00:00"
    assert 1000 <= sidecar(path)["duration"] < 1060


def test_a_fresh_run_takes_back_what_an_older_one_said(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    finished(path)
    RunLog(path, CONFIG, SIDECAR)
    assert sidecar(path)["finished"] is False
    assert len(path.read_text().splitlines()) == 1


def test_a_failing_rename_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.csv"
    log = RunLog(path, CONFIG, SIDECAR)
    log.append(row(1))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(source: Path, target: Path) -> None:
        assert source.parent == path.parent  # a rename across file systems would not be atomic
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match=r"run.csv: cannot be written \(disk full\)"):
        log.append(row(2))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder / "taken" / "run.csv", "cannot be written"),
        (lambda folder: folder / "folder.csv", "is a folder"),
        (lambda folder: folder / "run.txt", "ends in .csv"),
    ],
)
def test_unusable_output_is_one_sentence(tmp_path: Path, make: Any, reason: str) -> None:
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match=reason):
        runlog.check_writable(make(tmp_path))


def test_output_names() -> None:
    assert runlog.csv_path("a/sgd.lr1e-3.seed42") == Path("a/sgd.lr1e-3.seed42.csv")
    assert runlog.csv_path("a/sgd.seed42.csv") == Path("a/sgd.seed42.csv")
    assert runlog.sidecar_path(Path("a/sgd.lr1e-3.seed42.csv")) == Path("a/sgd.lr1e-3.seed42.json")


def test_writing_needs_neither_torch_nor_pandas(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from icassp25.runlog import *\n"
        f"RunLog(Path({str(tmp_path / 'run.csv')!r}), RunConfig(), {SIDECAR!r})\n"
        "print([name for name in ('torch', 'pandas', 'numpy') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    output = subprocess.check_output([sys.executable, "-c", program], cwd=root, text=True)
    assert output == "[]\n"


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────

numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(values=st.tuples(*[numbers] * 7), shares=st.tuples(*[st.floats(0, 1)] * 9))
def test_every_float_survives(
    tmp_path_factory: pytest.TempPathFactory, values: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    path = tmp_path_factory.mktemp("float") / "run.csv"
    config = replace(CONFIG, epochs=1)
    measures = dict(zip(runlog.MEASURES, values, strict=True))
    log = RunLog(path, config, SIDECAR)
    log.append(row(1, shares=shares, **measures))
    log.finish()
    frame = read_run(path).frame
    assert frame.loc[0, list(measures)].tolist() == list(values)
    assert frame.loc[0, list(runlog.SHARES)].tolist() == list(shares)


@pytest.mark.parametrize("acme", [False, True])
def test_read_run(tmp_path: Path, acme: bool) -> None:
    config = replace(CONFIG, acme=acme)
    finished(tmp_path / "run.csv", config)
    run = read_run(tmp_path / "run.csv")
    assert run.config == config and not run.diverged and run.sidecar["parameters"] == 77412
    assert list(run.frame.columns) == list(columns(config))
    assert run.frame["evaluations"].tolist() == [20, 40, 60]
    assert [str(run.frame[name].dtype) for name in ("epoch", "steps", "seconds")] == [
        "int64",
        "int64",
        "float64",
    ]
    assert bool(run.frame["share_0"].isna().all()) is not acme


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    finished(path)
    frame = read_run(path).frame
    for each in (path, path.with_suffix(".json")):
        each.write_text(each.read_text(), encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf") and read_run(path).frame.equals(frame)


def change(**entries: Any) -> Any:
    """A change of the JSON: entries replaced, or dropped where None."""

    def apply(path: Path) -> None:
        content = {**sidecar(path), **entries}
        kept = {name: value for name, value in content.items() if value is not None}
        path.with_suffix(".json").write_text(json.dumps(kept))

    return apply


def rewrite(old: str, new: str) -> Any:
    """A change of the CSV's text."""

    def apply(path: Path) -> None:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return apply


def cut(characters: int) -> Any:
    return lambda path: path.write_text(path.read_text()[:-characters])


SPOILED = {
    "without-json": (
        lambda path: path.with_suffix(".json").unlink(),
        "its JSON (without-json.json) is missing",
    ),
    "without-csv": (lambda path: path.unlink(), "the CSV of this JSON is missing"),
    "bad-json": (lambda path: path.with_suffix(".json").write_text("{"), "bad-json.json) cannot be read"),
    "list-json": (lambda path: path.with_suffix(".json").write_text("[]"), "is not an object"),
    "no-options": (change(options=None), "does not hold a run's options"),
    "odd-options": (change(options={"no_such": 1}), "unknown options: no_such"),
    "bad-options": (change(options={"epochs": "three"}), "does not hold a run's options"),
    "unfinished": (change(status="running", finished=False), "not finished (3 of 3 epochs)"),
    "no-device": (change(device=None), "its JSON lacks device"),
    "fewer-rows": (change(rows=4), "3 rows where its JSON says 4"),
    "other-columns": (
        rewrite("test_error", "accuracy"),
        'columns are not those of a run ("accuracy" is not one, "test_error" is missing)',
    ),
    "index": (rewrite("epoch,steps", ",epoch,steps"), 'not those of a run ("" is not one)'),
    "other-order": (rewrite("epoch,steps", "steps,epoch"), "(in another order, or twice)"),
    "empty": (lambda path: path.write_text(""), "columns are not those of a run"),
    "binary": (lambda path: path.write_bytes(b"\xff\x00\xfe"), "cannot be read"),
    "cut-cell": (cut(3), "line 4 is cut off"),
    "cut-row": (cut(30), "line 4 has"),
    "lost-row": (lambda path: path.write_text(path.read_text().rsplit("\n", 2)[0] + "\n"), "2 rows where"),
    "nan": (rewrite(",2.2,", ",nan,"), 'test_loss is "nan" in line 3, expected a finite number'),
    "word": (rewrite(",2.2,", ",low,"), 'test_loss is "low" in line 3'),
    "hole": (rewrite(",0.05,0.05\n", ",,0.05\n"), 'share_7 is "" in line 2'),
    "half-epoch": (rewrite("\n2,", "\n2.5,"), 'epoch is "2.5" in line 3'),
    "twice": (rewrite("\n2,", "\n1,"), "epochs are not 1 to 3"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_unusable_runs_are_named_and_left_out(tmp_path: Path, name: str) -> None:
    spoil, reason = SPOILED[name]
    finished(tmp_path / "good.csv")
    finished(tmp_path / f"{name}.csv")
    spoil(tmp_path / f"{name}.csv")
    runs, left_out = read_study(tmp_path)
    assert [run.path.name for run in runs] == ["good.csv"]
    assert len(left_out) == 1 and "\n" not in left_out[0]
    assert left_out[0].startswith(f"{name}.csv is left out: ") and left_out[0].endswith(".")
    assert reason in left_out[0]


def test_shares_in_a_run_without_acme_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    finished(path, replace(CONFIG, acme=False))
    rewrite(",,,,,,,,,\n", ",0.5,,,,,,,,\n")(path)
    with pytest.raises(UnusableRun, match="expected nothing, as ACME is off"):
        read_run(path)


def test_divergence_does_not_excuse_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    finished(path, train_loss=math.nan)
    assert read_run(path).diverged
    rewrite("nan", "NaNa")(path)
    with pytest.raises(UnusableRun, match='train_loss is "NaNa"'):
        read_run(path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    finished(path)
    whole = path.read_text()
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(UnusableRun):
            read_run(path)


def test_read_study_orders_by_name_and_ignores_other_files(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv"):
        finished(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".c.csv.123.tmp").write_text("")
    runs, left_out = read_study(tmp_path)
    assert [run.path.name for run in runs] == ["a.csv", "b.csv"] and left_out == []
    assert read_study(tmp_path / "no such folder") == ([], [])


# ── Skipping ──────────────────────────────────────────────────────────────────────────────────────────


def test_settled(tmp_path: Path) -> None:
    path, begun_anew = tmp_path / "run.csv", replace(CONFIG, resume=False)
    assert not settled(path, CONFIG)
    log = RunLog(path, CONFIG, SIDECAR)
    assert not settled(path, CONFIG) and not settled(path, begun_anew)  # started, and nothing to lose
    log.append(row(1))
    assert not settled(path, CONFIG)
    with pytest.raises(UsageError, match="holds this run, interrupted; .* or pass --resume to go on"):
        settled(path, begun_anew)
    for config in (CONFIG, begun_anew):
        with pytest.raises(UsageError, match="holds a run, interrupted, that differs in seed"):
            settled(path, replace(config, seed=1))
    finished(path)
    assert settled(path, CONFIG)
    assert settled(path, replace(CONFIG, data_dir="elsewhere", threads=7))
    with pytest.raises(UsageError, match="holds a run, finished, that differs in epochs, seed"):
        settled(path, replace(CONFIG, epochs=4, seed=1))
    with pytest.raises(UsageError, match="or pass --resume to keep it"):
        settled(path, begun_anew)
    path.unlink()
    assert not settled(path, CONFIG) and not settled(path, begun_anew)
    path.with_suffix(".checkpoint").write_bytes(b"")
    assert not settled(path, CONFIG)
    with pytest.raises(UsageError, match="interrupted"):
        settled(path, begun_anew)


def test_rows_that_are_nobodys_are_not_written_over(tmp_path: Path) -> None:
    """Of another program, or of a run whose JSON is lost or names options that there are no more."""
    path, foreign = tmp_path / "people.csv", "name,phone\nAnn,1\n"
    path.write_text(foreign)
    finished(tmp_path / "run.csv")
    sidecar_of_old = sidecar(tmp_path / "run.csv")
    sidecar_of_old["options"]["warp"] = 9
    (tmp_path / "run.json").write_text(json.dumps(sidecar_of_old))
    for config in (CONFIG, replace(CONFIG, resume=False)):
        with pytest.raises(
            UsageError, match="holds rows, but its JSON .people.json. is missing; name another"
        ):
            settled(path, config)
        with pytest.raises(UsageError, match="holds rows, but its JSON .*unknown options: warp"):
            settled(tmp_path / "run.csv", config)


def test_a_diverged_run_is_settled(tmp_path: Path) -> None:
    finished(tmp_path / "run.csv", test_loss=math.inf)
    assert settled(tmp_path / "run.csv", CONFIG)
