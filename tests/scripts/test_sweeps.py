"""The sweeps: which runs they list, and what they do when one fails or is interrupted."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from icassp25.config import RunConfig
from icassp25.lock import TAKEN, is_locked
from icassp25.peers import PEERS, default_lr
from icassp25.runlog import read_study

ROOT = Path(__file__).resolve().parents[2]
PRESETS = {"smoke": 1, "quick": 1, "reduced": 3, "paper": 3}  # seeds of the table


def sweep(name: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep in an environment that holds nothing but what it is given."""
    return subprocess.run(
        [str(ROOT / "scripts" / f"sweep_{name}.sh")],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def listed(name: str, **environment: str) -> list[list[str]]:
    done = sweep(name, DRY_RUN="1", **environment)
    assert done.returncode == 0 and done.stderr == ""
    return [shlex.split(line) for line in done.stdout.splitlines()]


def config(command: list[str]) -> RunConfig:
    """The configuration that the training script itself makes of a listed command."""
    path = ROOT / "icassp25" / "cifar100.acme.py"
    specification = importlib.util.spec_from_file_location("cifar100_acme", path)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    assert command[1:4] == ["icassp25/cifar100.acme.py", "--resume", "--output"]
    return script.parse(command[2:])


@pytest.mark.parametrize("preset", PRESETS)
def test_table_lists_16_optimizers_for_every_seed(preset: str) -> None:
    configs = [config(command) for command in listed("table", PRESET=preset)]
    assert len(configs) == 16 * PRESETS[preset]
    flags = Counter((c.adam, c.asam, c.nesterov, c.acme) for c in configs)
    assert len(flags) == 16 and set(flags.values()) == {PRESETS[preset]}
    assert len({c.seed for c in configs}) == PRESETS[preset] and 42 in {c.seed for c in configs}
    assert {(c.adam, c.lr) for c in configs} == {(False, 0.1), (True, 0.001)}
    assert len({c.output for c in configs}) == len(configs)
    for c in configs:
        c.check()
        assert c.resume and c.output is not None
        name = Path(c.output)
        assert name.parent == Path("results") / preset / "table" and name.suffix == ".csv"
        words = name.name.removesuffix(f".seed{c.seed}.csv").split("-")
        assert words[0] == ("adam" if c.adam else "sgd")
        assert words[1:] == [flag for flag in ("asam", "nesterov", "acme") if getattr(c, flag)]
        assert c.dataset == ("synthetic" if preset == "smoke" else "cifar100")


@pytest.mark.parametrize("preset", PRESETS)
def test_lr_lists_both_optimizers_with_and_without_acme(preset: str) -> None:
    configs = [config(command) for command in listed("lr", PRESET=preset)]
    lrs = sorted({c.lr for c in configs})
    assert lrs[-1] / lrs[0] >= 10**6
    cells = Counter((c.adam, c.acme, c.lr) for c in configs)
    assert set(cells) == {(adam, acme, lr) for adam in (False, True) for acme in (False, True) for lr in lrs}
    assert set(cells.values()) == {len({c.seed for c in configs})}
    assert len({c.output for c in configs}) == len(configs)
    assert not any(c.asam or c.nesterov for c in configs)
    for c in configs:
        c.check()
        assert c.output is not None
        start = "adam" if c.adam else "sgd"
        prefix = f"results/{preset}/lr/{start}{'-acme' * c.acme}.lr"
        assert c.output.startswith(prefix) and c.output.endswith(f".seed{c.seed}.csv")
        assert float(c.output.removeprefix(prefix).removesuffix(f".seed{c.seed}.csv")) == c.lr


@pytest.mark.parametrize("preset", PRESETS)
def test_equal_takes_the_evaluations_of_the_table_with_acme(preset: str) -> None:
    table = {
        (c.adam, c.asam, c.nesterov, c.seed): c
        for c in (config(command) for command in listed("table", PRESET=preset))
        if c.acme
    }
    configs = [config(command) for command in listed("equal", PRESET=preset)]
    assert len(configs) == 8 * PRESETS[preset]
    for c in configs:
        other = table.pop((c.adam, c.asam, c.nesterov, c.seed))
        assert set(c.same_run(other)) == {"acme", "epochs"}
        evaluations, wanted = c.epochs * (1 + c.asam), other.epochs * (2 + other.asam)
        assert wanted <= evaluations < wanted + 1 + c.asam
    assert not table


@pytest.mark.parametrize("preset", [*PRESETS, "short", "text", "digits", "small"])
def test_every_preset_has_a_time_limit_for_slurm(preset: str, tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$@"\n')
    sbatch.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "scripts" / "sweep_table.sh"), "--slurm"], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PRESET": preset, "RESULTS": str(tmp_path)},
    )  # fmt: skip
    assert re.search(r" --time=\d+ ", done.stdout)


def test_presets_are_the_scales_they_are_called() -> None:
    scales = {preset: config(listed("table", PRESET=preset)[0]) for preset in PRESETS}
    assert scales["smoke"].train_images <= 1000 and scales["smoke"].epochs <= 2
    assert (scales["quick"].depth, scales["quick"].width_alpha) == (4, 1)
    assert (scales["reduced"].depth, scales["reduced"].width_alpha) == (16, 4)
    assert scales["reduced"].epochs == 30 and scales["reduced"].compile
    paper = scales["paper"]
    assert (paper.depth, paper.width_alpha, paper.epochs, paper.batch_size) == (16, 8, 200, 200)
    for preset in PRESETS:  # both sweeps of a preset train the same thing
        other = config(listed("lr", PRESET=preset)[0])
        assert set(scales[preset].same_run(other)) <= {"lr"}


def test_quick_is_the_default_and_unknown_names_are_refused() -> None:
    assert listed("table") == listed("table", PRESET="quick")
    for environment in (
        {"PRESET": "huge"},
        {"DATASET": "imagenet"},
        {"PRESET": "text", "DATASET": "cifar100"},
    ):
        done = sweep("table", **environment)
        assert done.returncode == 2 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1 and "expected" in done.stderr


def test_settings_from_outside() -> None:
    synthetic = config(listed("table", DATASET="synthetic")[0])
    assert synthetic.dataset == "synthetic"
    assert synthetic.output == "results/quick-synthetic/table/sgd.seed42.csv"
    named = config(listed("lr", STUDY="mine", RESULTS="/else where", DATA_DIR="/my data")[0])
    assert named.output is not None and named.output.startswith("/else where/mine/lr/")
    assert named.data_dir == "/my data"
    without_files = config(listed("peers", PRESET="digits", DATA_DIR="/my data", STUDY="mine")[0])
    assert without_files.data_dir is None and without_files.output.startswith("results/mine/peers/")
    assert {config(command).seed for command in listed("equal", SEEDS="7 8")} == {7, 8}
    assert {config(command).seed for command in listed("table", SEEDS="7 8")} == {7, 8}
    assert {config(command).seed for command in listed("lr", LR_SEEDS="7")} == {7}
    assert listed("table", PYTHON="/my python")[0][0] == "/my python"


def test_relative_folders_are_from_where_the_user_stands(stub: Path, tmp_path: Path) -> None:
    here = {**environment(stub), "RESULTS": "my runs", "DATA_DIR": "../data", "PYTHON": f"./{stub.name}"}
    here |= {"CIFAR100_ROOT": "images"}
    done = sweep("table", cwd=tmp_path, **{**here, "PRESET": "quick"})
    assert done.returncode == 0 and len(lines(stub)) == 16
    assert f" --output {tmp_path}/my runs/quick/table/sgd.seed42.csv " in lines(stub)[0]
    assert f" --data-dir {tmp_path}/../data " in lines(stub)[0]
    assert (tmp_path / "my runs" / "quick" / "table" / "sgd.seed42.log").exists()
    assert stub.with_name("root").read_text() == f"{tmp_path}/images"
    assert listed("table", PYTHON="python3")[0][0] == "python3"


def test_tables_are_written_where_the_user_stands(made: SimpleNamespace, tmp_path: Path) -> None:
    made.table(tmp_path / "runs" / "s" / "table", (42,))
    done = subprocess.run(
        [str(ROOT / "scripts" / "rebuild.sh"), "tables"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, "STUDY": "s", "RESULTS": "runs", "FIGURES": "out"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "s" / "table.md").exists()


def reproduced(
    tmp_path: Path, cuda: bool, failing: str = "nothing", **more: str
) -> subprocess.CompletedProcess[str]:
    """reproduce.sh with a stand-in for Python, which says of itself what it does."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        'case "$*" in\n'
        f"*cuda.is_available*raise* | *raise*cuda.is_available*) exit {int(not cuda)} ;;\n"
        '*emulates_bfloat16*) printf "a device\\nFalse\\n" ;;\n'
        f'*{failing}*) echo "fails: $*"; exit 4 ;;\n'
        '*) echo "done: $*" ;;\n'
        "esac\n"
    )
    python.chmod(0o755)
    folders = {"RESULTS": str(tmp_path / "results"), "FIGURES": str(tmp_path / "figures")}
    return subprocess.run(
        [str(ROOT / "scripts" / "reproduce.sh")], capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "PYTHON": str(python), **folders, **more},
    )  # fmt: skip


def test_a_product_that_fails_does_not_suppress_the_others(tmp_path: Path) -> None:
    done = reproduced(tmp_path, cuda=False, failing="make_figures", PRESET="smoke")
    assert done.returncode == 4 and "fails: scripts/make_figures.py" in done.stdout
    assert "done: scripts/make_report.py" in done.stdout and "done: scripts/make_tables.py" in done.stdout
    assert reproduced(tmp_path, cuda=False, PRESET="smoke").returncode == 0


def test_what_is_reproduced_where_nothing_is_said(tmp_path: Path) -> None:
    """An hour of an H100 where CUDA is, else what a CPU can, on all its cores."""
    cores = subprocess.check_output(["getconf", "_NPROCESSORS_ONLN"], text=True).strip()
    reduced = reproduced(tmp_path, cuda=True, DRY_RUN="1").stdout
    assert "preset reduced (for: one GPU; on an H100, " in reduced and "runs     52, 3 at a time" in reduced
    assert set(re.findall(r"--seed (\d+)", reduced)) == {"42"}
    quick = reproduced(tmp_path, cuda=False, DRY_RUN="1").stdout
    assert "preset quick" in quick and f"runs     44, {cores} at a time" in quick
    paper = reproduced(tmp_path, cuda=True, DRY_RUN="1", PRESET="paper").stdout
    assert "hours of an H100" in paper and set(re.findall(r"--seed (\d+)", paper)) == {"42", "43", "44"}


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A stand-in for Python that notes its options, and fails for the names in $FAIL."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        'echo "$PWD $*" >> "$LOG"; printf %s "$CIFAR100_ROOT" > "${LOG%log}root"\n'
        'echo "finished: test error 50.00% after epoch 2, logged in $4"\n'
        'case "$*" in *"$FAIL"*) exit 3;; *"$INTERRUPTED"*) exit 130;; esac\n'
        "exec sleep $SLEEP\n"
    )
    script.chmod(0o755)
    return script


def environment(stub: Path, **more: str) -> dict[str, str]:
    defaults = {"FAIL": "nothing", "INTERRUPTED": "nothing", "SLEEP": "0", "PRESET": "smoke"}
    folders = {"LOG": str(stub.with_name("log")), "RESULTS": str(stub.with_name("results"))}
    return {"PYTHON": str(stub), **folders, **defaults, **more}


def lines(stub: Path) -> list[str]:
    return stub.with_name("log").read_text().splitlines()


@pytest.mark.parametrize("name", ["table", "lr"])
def test_what_is_listed_is_what_runs_from_any_folder(stub: Path, tmp_path: Path, name: str) -> None:
    done = sweep(name, cwd=tmp_path, **environment(stub))
    assert done.returncode == 0 and done.stderr == ""
    results = str(stub.with_name("results"))
    expected = [shlex.join(command[1:]) for command in listed(name, PRESET="smoke", RESULTS=results)]
    assert lines(stub) == [f"{ROOT} {command}" for command in expected]
    assert f"{len(expected)} of {len(expected)} runs done" in done.stdout


def test_dry_run_runs_nothing(stub: Path) -> None:
    assert sweep("table", **environment(stub, DRY_RUN="1")).returncode == 0
    assert not stub.with_name("log").exists()


def test_a_failing_run_is_reported_and_the_others_go_on(stub: Path) -> None:
    done = sweep("table", **environment(stub, FAIL="table/sgd-asam-acme.seed42.csv"))
    assert done.returncode == 1
    assert len(lines(stub)) == 16
    assert "smoke/table/sgd-asam-acme.seed42 FAILED (exit code 3)" in done.stderr
    *_, header, closing = done.stdout.rsplit("\n\n", 1)[1].split("\n", 1)
    table = {line.split()[0]: line.split(None, 2)[2] for line in closing.splitlines()[:16]}
    assert header.split() == ["run", "seconds", "outcome"] and len(table) == 16
    log = Path(environment(stub)["RESULTS"]) / "smoke" / "table" / "sgd-asam-acme.seed42.log"
    assert [name for name, outcome in table.items() if "FAILED" in outcome] == ["table/sgd-asam-acme.seed42"]
    assert table["table/sgd-asam-acme.seed42"] == f"FAILED (exit code 3), see {log}"
    assert done.stdout.splitlines()[-1] == "== smoke: 15 of 16 runs done, 1 failed"


def test_of_a_failed_run_the_end_of_its_log_is_shown(stub: Path, tmp_path: Path) -> None:
    stub.write_text(stub.read_text().replace("exit 3", "echo the reason; exit 3"))
    done = sweep("table", **environment(stub, FAIL="table/adam.seed42.csv", RESULTS=str(tmp_path / "r")))
    assert done.returncode == 1
    assert "the reason" in done.stderr
    assert "the reason" in (tmp_path / "r" / "smoke" / "table" / "adam.seed42.log").read_text()


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_runs_at_a_time(stub: Path, jobs: int) -> None:
    text = stub.read_text().replace("exec sleep $SLEEP", 'sleep $SLEEP; echo end >> "$LOG"')
    stub.write_text(text)
    done = sweep("lr", **environment(stub, SLEEP="0.4", JOBS=str(jobs)))
    assert done.returncode == 0 and "12 of 12 runs done" in done.stdout
    at_once = [0]
    for line in lines(stub):
        at_once.append(at_once[-1] + (-1 if line == "end" else 1))
    assert max(at_once) == jobs and at_once[-1] == 0
    outputs = [line.split("--output ")[1].split()[0] for line in lines(stub) if line != "end"]
    assert len(set(outputs)) == 12


def test_a_gpu_each(stub: Path, tmp_path: Path) -> None:
    stub.write_text(stub.read_text().replace('echo "$PWD $*"', 'echo "$CUDA_VISIBLE_DEVICES"'))
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = sweep("table", **environment(stub, SLEEP="0.3", JOBS="2", PATH=path))
    assert done.returncode == 0
    assert Counter(lines(stub)) == {"0": 8, "1": 8}
    stub.with_name("log").unlink()
    done = sweep("table", **environment(stub, SLEEP="0.3", JOBS="2", PATH=path, CUDA_VISIBLE_DEVICES="3,5"))
    assert set(lines(stub)) == {"3", "5"}
    for nothing in ("", "-1", "NoDevFiles"):  # the last is what SLURM says; each run is told the same
        stub.with_name("log").unlink()
        sweep("table", **environment(stub, PATH=path, CUDA_VISIBLE_DEVICES=nothing))
        assert set(lines(stub)) == {nothing}


@pytest.mark.parametrize("preset", ["smoke", "quick", "short", "text", "digits", "small"])
def test_runs_of_a_cpu_have_one_thread(preset: str) -> None:
    """However many cores there are and however many runs at a time, so that the numbers are the same."""
    for environment in ({}, {"JOBS": "3"}):
        commands = listed("table", PRESET=preset, **environment)
        assert {config(command).threads for command in commands} == {1}


def test_what_another_process_trains_is_asked_for_again(stub: Path) -> None:
    busy = stub.with_name("busy")
    busy.touch()
    text = f'*table/sgd.seed42*) if [ -e {busy} ]; then rm {busy}; exit 75; fi;; *"$FAIL"*)'
    stub.write_text(stub.read_text().replace('*"$FAIL"*)', text))
    done = sweep("table", **environment(stub, RETRY_S="0"))
    assert done.returncode == 0 and "16 of 16 runs done" in done.stdout
    assert "waiting for 1 runs" in done.stdout
    assert sum("table/sgd.seed42" in line for line in lines(stub)) == 2


@pytest.mark.parametrize("jobs", ["0", "two", "-1"])
def test_jobs_out_of_range(jobs: str) -> None:
    done = sweep("table", JOBS=jobs)
    assert done.returncode == 2 and "JOBS" in done.stderr and len(done.stderr.splitlines()) == 1


def test_two_processes_never_train_one_run(tmp_path: Path) -> None:
    """The second leaves it to the first; where the first is killed, the next one goes on from its checkpoint."""
    output = tmp_path / "run.csv"
    command = [
        sys.executable, str(ROOT / "icassp25" / "cifar100.acme.py"), "--resume", "--output", str(output),
        "--dataset", "synthetic", "--train-images", "200", "--batch-size", "100", "--depth", "4",
        "--width-alpha", "1", "--device", "cpu", "--epochs", "300",
    ]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (output.exists() and len(output.read_text().splitlines()) > 2):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.1)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 75 and "another process is training this run" in second.stderr
        assert is_locked(output)
    finally:
        first.kill()
        first.wait()
    assert not is_locked(output)
    third = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert third.stdout is not None
    assert any("resumed after epoch" in third.stdout.readline() for _ in range(2))
    third.terminate()
    _, errors = third.communicate(timeout=60)
    assert third.returncode == 130 and "interrupted: --resume goes on" in errors and "Traceback" not in errors
    assert not list(tmp_path.glob(".*.lock"))


def test_two_launches_at_once_train_each_run_once(tmp_path: Path) -> None:
    """Where possible, one of them in the belief that it is on another machine."""
    runs = [f"table/{name} --seed 1 --lr 0.1 --threads 1" for name in ("a", "b", "c")]
    script = tmp_path / "sweep_few.sh"
    script.write_text(
        "\n".join(["#!/bin/bash", f". {ROOT}/scripts/sweep.sh", *(f"run {run}" for run in runs), "report\n"])
    )
    script.chmod(0o755)
    there = [str(script)]
    if shutil.which("unshare") and os.geteuid() == 0:
        there = ["unshare", "--uts", "sh", "-c", f"hostname elsewhere; exec {script}"]
    folders = {"PRESET": "smoke", "RESULTS": str(tmp_path / "results"), "PYTHON": sys.executable}
    started = [
        subprocess.Popen(
            command,
            env={"PATH": os.environ["PATH"], **folders, "JOBS": jobs, "RETRY_S": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for command, jobs in (([str(script)], "1"), (there, "2"))
    ]
    for process in started:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and printed.splitlines()[-1] == "== smoke: 3 of 3 runs done, 0 failed"
    folder = tmp_path / "results" / "smoke" / "table"
    done, left_out = read_study(folder)
    assert [run.path.stem for run in done] == ["a", "b", "c"] and not left_out
    assert not list(folder.glob("*.checkpoint")) and not list(folder.glob(".*"))
    logs = [run.path.with_suffix(".log").read_text() for run in done]
    assert [log.count("test error") for log in logs] == [1] * 3  # trained to its end, once
    assert [log.count("epoch ") for log in logs] == [2] * 3  # the header, and that end: begun once
    for run in done[1:]:
        pd.testing.assert_frame_equal(
            run.frame.drop(columns="seconds"), done[0].frame.drop(columns="seconds"), check_exact=True
        )


def test_status(tmp_path: Path, made: SimpleNamespace) -> None:
    folder = tmp_path / "smoke"
    scale = {"train_images": 300, "epochs": 2, "dataset": "synthetic", "depth": 4, "width_alpha": 1}
    made.run(folder / "table" / "sgd.seed42.csv", lr=0.1, **scale)
    (folder / "table" / "adam.seed42.log").write_text("no memory …\n", encoding="utf-8")
    (folder / "table" / "adam-acme.seed42.log").write_text("interrupted: --resume goes on\n")
    taken = f"adam-asam.seed42.csv: {TAKEN} (process 12 on node3)."
    (folder / "table" / "adam-asam.seed42.log").write_text(
        f"epoch    evals\n    1      480     9.5\n{taken}\n"
    )
    done = subprocess.run(
        [str(ROOT / "scripts" / "status.sh")],
        env={"PATH": os.environ["PATH"], "PRESET": "smoke", "RESULTS": str(tmp_path), "PYTHON": sys.executable,
             "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    counts = dict(reversed(line.split()) for line in done.splitlines() if line.split()[0].isdigit())
    assert counts == {"finished": "1", "running": "0", "interrupted": "2", "failed": "1", "missing": "32"}
    assert "adam.seed42.csv: no memory ?" in done and "time left: about" in done


def test_an_interrupted_run_ends_the_sweep(stub: Path) -> None:
    done = sweep("table", **environment(stub, INTERRUPTED="sgd-acme.seed42.csv"))
    assert done.returncode == 130
    assert len(lines(stub)) == 2
    assert "same command continues" in done.stderr


def test_ctrl_c_stops_the_sweep(stub: Path) -> None:
    sweeping = subprocess.Popen(
        [str(ROOT / "scripts" / "sweep_table.sh")],
        env={"PATH": os.environ["PATH"], **environment(stub, SLEEP="60")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that the signal reaches the sweep and its run, as from a terminal
        # Where the tests themselves run in the background, Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (one thread)
    )
    deadline = time.monotonic() + 20
    while not stub.with_name("log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    os.killpg(sweeping.pid, signal.SIGINT)
    _, errors = sweeping.communicate(timeout=20)
    assert sweeping.returncode == 130
    assert "same command continues" in errors
    assert len(lines(stub)) == 1


@pytest.mark.parametrize(
    ("preset", "seeds"), [("smoke", 1), ("quick", 1), ("short", 3), ("text", 3), ("digits", 3), ("paper", 3)]
)
def test_peers_lists_every_method_from_the_default_outwards(preset: str, seeds: int) -> None:
    commands = listed("peers", PRESET=preset)
    configs = [config(command) for command in commands]
    assert len(configs) == (19 * 7 + 4) * seeds == len({c.output for c in configs})
    whole = max(c.epochs for c in configs)
    order = []
    for c in configs:
        c.check()
        assert c.validation > 0 and c.output is not None
        assert c.dataset == {"smoke": "synthetic", "text": "text", "digits": "digits"}.get(preset, "cifar100")
        words = re.fullmatch(rf"results/{preset}/peers/(.+)\.x([\d.]+)\.seed{c.seed}\.csv", c.output)
        assert words is not None
        name, multiple = words[1], float(words[2])
        if c.optimizer == "acme":
            default = 0.001 if c.adam else 0.1
            half, kept = c.epochs == (whole + 1) // 2, c.gain != 1
            assert (c.gain, c.adapt_steps, c.search_steps) == ((4, 100, 20) if kept else (1, None, 0))
            suffix = "-half" if half else "-kept" * kept + "-unbiased" * c.unbiased_squares
            assert c.anneal_over == (1.5 if c.average_weights else 1) and not c.no_annealing
            if c.average_weights:
                assert kept and c.unbiased_squares == c.adam
                suffix = "-kept-averaged" if c.limit_train_batches == 1 else "-kept-equal"
            assert c.acme and name == f"{'adam' if c.adam else 'sgd'}-acme{suffix}"
            assert kept or not c.unbiased_squares
            assert multiple == 1 if suffix in ("-half", "-kept-equal") else c.limit_train_batches == 1
            assert half or c.epochs == whole
        else:
            default = default_lr(c.optimizer, c.model)
            assert default == PEERS[c.optimizer].default or c.optimizer == "dog"
            assert name == c.optimizer and c.epochs == whole
        assert c.lr == pytest.approx(default * multiple)
        order.append((c.seed, abs(round(math.log10(multiple)))))
    assert order == sorted(order) and {multiple for _, multiple in order} == {0, 1, 2, 3}


def test_small_lists_tuned_learning_rates_beside_a_step_size_that_is_kept() -> None:
    table = [config(command) for command in listed("table", PRESET="small")]
    configs = [config(command) for command in listed("kept", PRESET="small")]
    assert len({c.output for c in table}) == 16 and len({c.output for c in configs}) == len(configs) == 29
    for c in [*table, *configs]:
        c.check()
        assert (c.model, c.depth, c.width_alpha, c.train_images, c.validation) == ("WRN", 4, 1, None, 0)
        assert (c.epochs, c.batch_size, c.precision, c.threads, c.seed) == (30, 200, "bfloat16", 1, 42)
        assert c.steps_per_epoch == 250
    tuned = {
        (c.optimizer if c.optimizer != "acme" else "adam" if c.adam else "sgd", c.lr)
        for c in configs
        if not c.acme
    }
    assert tuned == {
        *(("sgd", lr) for lr in (1, 3, 10, 30)), *(("adam", lr) for lr in (0.003, 0.01, 0.03)),
        *(("sgd", lr) for lr in (5.393, 15.56, 0.1024, 8.274)),
        *(("adam", lr) for lr in (0.01262, 0.01024, 0.0002984, 0.00581)),
        ("schedulefree-sgd", 10), ("schedulefree-adamw", 0.025),
    }  # fmt: skip
    kept = [c for c in configs if c.acme]
    for c in kept:
        assert (c.adapt_steps, c.search_steps, c.unbiased_squares) == (60, 20, c.adam)
        assert c.anneal_over == (1.5 if c.average_weights else 1)
    for adam, default in ((False, 0.1), (True, 0.001)):
        assert {(c.gain, c.lr, c.average_weights) for c in kept if c.adam == adam} == {
            *((gain, default, False) for gain in (1, 2, 4)), (2, 1e-4, False), (2, 100, False), (2, default, True),
        }  # fmt: skip


def test_status_knows_the_runs_beside_peers(tmp_path: Path) -> None:
    def missing(**environment: str) -> int:
        python = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "RESULTS": str(tmp_path)}
        done = subprocess.run(
            [str(ROOT / "scripts" / "status.sh")], env={**python, **environment}, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return int(re.search(r"(\d+) missing", done.stdout)[1])

    assert missing(PRESET="short") == 3 * 137 + 32 + 30  # beside peers, over gain, and over the length
    assert missing(PRESET="text") == missing(PRESET="digits") == 3 * 137
    reproduced = missing(PRESET="quick")
    (tmp_path / "quick" / "peers").mkdir(parents=True)
    assert missing(PRESET="quick") == reproduced + 137
    (tmp_path / "quick" / "variants").mkdir()
    assert missing(PRESET="quick") == reproduced + 137 + 15
