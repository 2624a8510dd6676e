"""Whole runs: what they log, how they go on after an interruption, and how they end."""

import csv
import json
import math
import os
import pickle
import platform
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from acme import Acme
from icassp25 import data, runlog, tasks, train
from icassp25.config import RunConfig, UsageError

SCRIPT = Path(__file__).resolve().parents[2] / "icassp25" / "cifar100.acme.py"
TINY = RunConfig(
    dataset="synthetic", train_images=400, batch_size=100, depth=4, width_alpha=1, epochs=2, device="cpu",
    threads=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SYNTHETIC_TEST_IMAGES", 400)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def go(tmp_path: Path, config: RunConfig, name: str = "run") -> tuple[list[dict[str, str]], dict]:
    path = tmp_path / f"{name}.csv"
    train.run(config, path)
    return rows(path), json.loads(path.with_suffix(".json").read_text())


def test_sgd_logs_the_cosine(tmp_path: Path) -> None:
    logged, sidecar = go(tmp_path, replace(TINY, epochs=4, lr=0.5))
    assert [int(row["epoch"]) for row in logged] == [1, 2, 3, 4]
    assert (
        [int(row["steps"]) for row in logged] == [4, 8, 12, 16] == [int(row["evaluations"]) for row in logged]
    )
    cosine = [0.005 + 0.495 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [float(row["lr"]) for row in logged] == pytest.approx(cosine)
    assert all(row["lr"] == row["step_size"] for row in logged)
    assert all(row[name] == "" for row in logged for name in runlog.SHARES)
    assert (sidecar["status"], sidecar["finished"]) == ("finished", True)
    assert sidecar["parameters"] == 83_956 and sidecar["steps_per_epoch"] == 4
    assert sidecar["versions"]["torch"] == torch.__version__ and sidecar["device"].startswith("CPU")
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize("options", [{}, {"acme": True}], ids=["sgd", "acme"])
def test_limited_batches_are_the_first_of_each_epochs_order(
    tmp_path: Path, options: dict[str, object]
) -> None:
    config = replace(TINY, limit_train_batches=0.75, **options)
    seen: list[torch.Tensor] = []
    task = tasks.load(config, torch.device("cpu"))
    experiment = train.Experiment(config, task, torch.device("cpu"), Acme)
    training = task.training

    def recording(indices: torch.Tensor, *rest: object) -> object:
        seen.append(indices)
        return training(indices, *rest)

    task.training = recording  # type: ignore[method-assign]
    for number in (1, 2):
        experiment.epoch(number)
    first, second = (set(indices.tolist()) for indices in seen)
    assert len(first) == len(second) == 300 and first != second  # of 400, in another order
    generator = torch.Generator().manual_seed(config.seed)
    assert torch.equal(seen[0], task.order(generator)[:300])
    assert experiment.progress.steps == 6
    logged, sidecar = go(tmp_path, config)
    assert [int(row["steps"]) for row in logged] == [3, 6] and sidecar["steps_per_epoch"] == 3
    if config.acme:
        assert experiment.optimizer.param_groups[0]["total_steps"] == 6
    else:
        cosine = [0.05 * (1.01 + 0.99 * math.cos(math.pi * epoch / 2)) for epoch in range(2)]
        assert [float(row["lr"]) for row in logged] == pytest.approx(cosine)


def test_a_share_of_the_batches_is_rounded_down() -> None:
    config = RunConfig(train_images=10_000, batch_size=100, limit_train_batches=0.29)
    assert config.steps_per_epoch == 29  # 0.29 · 100 is below 29
    assert replace(config, limit_train_batches=0.299).steps_per_epoch == 29
    for share in (0.0, -0.5, 1.1, math.nan, 0.005):
        with pytest.raises(UsageError, match=r"--limit-train-batches .* one of the 100 batches of an epoch"):
            replace(config, limit_train_batches=share).check()


@pytest.mark.parametrize("asam", [False, True])
def test_acme_logs_decisions_and_evaluations(tmp_path: Path, asam: bool) -> None:
    logged, _ = go(tmp_path, replace(TINY, acme=True, asam=asam, adam=True, nesterov=True, lr=1e-3))
    each = 3 if asam else 2
    assert [int(row["evaluations"]) for row in logged] == [4 * each, 8 * each]
    for row in logged:
        assert sum(float(row[name]) for name in runlog.SHARES) == pytest.approx(1)
        assert float(row["lr"]) == 1e-3 != float(row["step_size"])


def test_logged_numbers_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training loss and error: means over the first evaluations; test: over the test set, on the last weights."""
    config = replace(TINY, epochs=1, acme=True, asam=True)
    seen: list[tuple[float, float]] = []
    kept = []
    original = train.Experiment._step

    def spy(self, batch, targets, *others):
        kept.append(self)
        first = True
        criterion = self.criterion

        def watched(logits, labels):
            nonlocal first
            loss = criterion(logits, labels)
            if first:
                seen.append((loss.item(), (logits.argmax(1) != labels).double().mean().item()))
            first = False
            return loss

        self.criterion = watched
        original(self, batch, targets, *others)
        self.criterion = criterion

    monkeypatch.setattr(train.Experiment, "_step", spy)
    ((row,), _) = go(tmp_path, config)
    assert len(seen) == 4
    assert float(row["train_loss"]) == pytest.approx(sum(x for x, _ in seen) / 4, rel=1e-6)
    assert float(row["train_error"]) == pytest.approx(sum(x for _, x in seen) / 4, rel=1e-6)

    experiment = kept[-1]
    images = experiment.task.data
    inputs = images.test[0].float() / 255 - images.mean.view(3, 1, 1)
    with torch.no_grad():
        logits = experiment.model.eval()(inputs / images.std.view(3, 1, 1))
    loss = torch.nn.functional.cross_entropy(logits, images.test[1], label_smoothing=0.1).item()
    assert float(row["test_loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(row["test_error"]) == pytest.approx(
        (logits.argmax(1) != images.test[1]).double().mean().item(), abs=2e-3
    )


def test_acmes_options_are_passed_on() -> None:
    """All that are set; those that are not, where the class's signature has them: a foreign one need not know them."""
    config = replace(TINY, acme=True, adam=True, momentum=0.8, weight_decay=0.02, rho=0.3, eta=0.1, asam=True)
    device = torch.device("cpu")
    made = {}

    def recorder(model, lr, **options):
        made.clear()
        made.update(options, lr=lr)
        return Acme(model, lr, **options)

    def passed_on(config: RunConfig, make=recorder) -> dict[str, object]:
        experiment = train.Experiment(config, tasks.load(config, device), device, make)
        assert experiment.scheduler is None
        return dict(made)

    always = {
        "lr": 0.1,
        "betas": (0.8, 0.999),
        "epsilon": 1e-8,
        "weight_decay": 0.02,
        "bias_correction": True,
    }
    own = {"acme": True, "adam": True, "asam": True, "rho": 0.3, "eta": 0.1}
    assert passed_on(config) == {**always, **own, "total_steps": 8}
    more = {"gain": 2.0, "adapt_steps": 7, "search_steps": 5, "unbiased_squares": True, "nesterov": True}
    assert passed_on(replace(config, **more)) == {**always, **own, **more, "total_steps": 8}
    assert passed_on(replace(config, no_annealing=True))["total_steps"] is None
    assert passed_on(replace(config, anneal_over=1.5))["total_steps"] == 12

    def with_gain(model, lr, gain, **options):
        return recorder(model, lr, gain=gain, **options)

    assert passed_on(config, with_gain) == {**always, **own, "total_steps": 8, "gain": 1.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gain", "2"], "--gain 2.0: expected 1 without acme=True."),
        (["--acme", "--gain", "0"], "--gain 0.0: expected a positive number"),
        (["--acme", "--adapt-steps", "0"], "--adapt-steps 0: expected at least 1"),
        (["--search-steps", "3"], "--search-steps 3: expected 0 without acme=True."),
        (["--asam", "--rho", "-1"], "--rho -1.0: expected a finite number of at least 0."),
        (["--unbiased-squares"], "--unbiased-squares True: expected False without adam=True"),
        (["--acme", "--gain", "2", "--acme-script", "published"], "published: its Acme got an unexpected keyword argument 'gain'."),
        (["--acme", "--acme-script", "published"], "--acme-script published: it does not like Mondays."),
    ],
)  # fmt: skip
def test_what_acme_refuses_is_one_sentence(options: list[str], said: str, tmp_path: Path) -> None:
    """Before the data is looked for; also what another package's class says or does not know."""
    (tmp_path / "published.py").write_text(
        "class Acme:\n"
        "    def __init__(self, model, lr, betas, epsilon, weight_decay, acme, bias_correction, total_steps):\n"
        "        raise ValueError('it does not like Mondays')\n"
    )
    output = ("--data-dir", str(tmp_path / "none"), "--output", str(tmp_path / "x.csv"))
    assert said in refused(*options, *output, env={"PYTHONPATH": str(tmp_path)})
    assert not (tmp_path / "x.csv").exists()


def test_adapt_steps_and_what_was_before_it(tmp_path: Path) -> None:
    """The look-aheads end; runs with `adapt_every` can be read, and not trained."""
    config = replace(TINY, acme=True, adapt_steps=3)
    logged, _ = go(tmp_path, config)
    assert [int(row["evaluations"]) for row in logged] == [7, 11] and config.evaluations_per_step == 1.375
    shares = [sum(float(row[name]) for name in runlog.SHARES) for row in logged]
    assert shares == [0.75, 0.0] and logged[0]["step_size"] == logged[1]["step_size"]
    assert "adapt_steps-3" in config.name and replace(config, adapt_steps=100).evaluations_per_step == 2
    earlier = replace(TINY, acme=True, adapt_every=10)
    earlier.check()
    assert RunConfig.from_dict(earlier.to_dict()) == earlier and earlier.evaluations_per_step == 1.1
    with pytest.raises(UsageError, match="unexpected keyword argument 'adapt_every'"):
        train.run(earlier, tmp_path / "earlier.csv")


@pytest.mark.parametrize("adam", [False, True])
def test_a_found_rate_is_that_of_a_run_with_it(tmp_path: Path, adam: bool) -> None:
    """But for the evaluations that it took; the rate stands in the JSON."""
    logged, sidecar = go(tmp_path, replace(TINY, find_lr=True, adam=adam))
    other, plain = go(tmp_path, replace(TINY, lr=sidecar["found_lr"], adam=adam), "other")
    assert [int(row["evaluations"]) for row in logged] == [124, 128]
    numbers = [
        {k: v for k, v in row.items() if k not in ("seconds", "evaluations")} for row in (*logged, *other)
    ]
    assert numbers[:2] == numbers[2:] and float(logged[0]["lr"]) == sidecar["found_lr"]
    assert "found_lr" not in plain


def test_a_found_rate_is_that_of_the_run_that_goes_on(tmp_path: Path) -> None:
    """And not what a search says when it is resumed."""
    config, device, path = replace(TINY, find_lr=True), torch.device("cpu"), tmp_path / "run.checkpoint"
    task = tasks.load(config, device)
    begun, resumed = (train.Experiment(config, task, device, Acme) for _ in range(2))
    begun.save(path, [])
    found, resumed.found_lr = begun.found_lr, 1e9
    resumed.load(path)
    assert resumed.found_lr == found == resumed.optimizer.param_groups[0]["lr"]


def test_without_annealing_the_learning_rate_stays(tmp_path: Path) -> None:
    logged, _ = go(tmp_path, replace(TINY, epochs=3, lr=0.5, no_annealing=True))
    assert [float(row["lr"]) for row in logged] == [0.5] * 3
    logged, _ = go(tmp_path, replace(TINY, epochs=3, lr=0.5, anneal_over=1.5), "partly")
    cosine = [0.005 + 0.495 * (1 + math.cos(math.pi * epoch / 4.5)) / 2 for epoch in range(3)]
    assert [float(row["lr"]) for row in logged] == pytest.approx(cosine)


@pytest.mark.parametrize("options", [{"acme": True}, {"optimizer": "sgd"}], ids=["acme", "sgd"])
def test_averaged_weights_are_tested_and_nothing_else_changes(options: dict[str, object]) -> None:
    """The training is the same; the tests are at the mean of the weights by the definition's shares."""
    device = torch.device("cpu")
    config = replace(TINY, epochs=1, validation=400, lr=0.5, **options)
    task = tasks.load(config, device)

    def trained(config: RunConfig) -> tuple[train.Experiment, runlog.Row, list[dict[str, torch.Tensor]]]:
        experiment = train.Experiment(config, task, device, Acme)
        passed = []
        original = experiment.optimizer.step

        def step(closure):
            loss = original(closure)
            passed.append({key: value.clone() for key, value in experiment.model.state_dict().items()})
            return loss

        experiment.optimizer.step = step
        return experiment, experiment.epoch(1), passed

    _, plain, _ = trained(config)
    experiment, row, passed = trained(replace(config, average_weights=True))
    assert (row.train_loss, row.step_size) == (plain.train_loss, plain.step_size)
    assert (row.test_loss, row.validation_loss) != (plain.test_loss, plain.validation_loss)
    shares: list[float] = []
    for t in range(1, len(passed) + 1):
        shares = [share * (1 - 9 / (t + 8)) for share in shares] + [9 / (t + 8)]
    experiment.tested_model = experiment.model
    experiment.model.load_state_dict(
        {key: sum(s * state[key] for s, state in zip(shares, passed, strict=True)) for key in passed[0]}
    )
    assert row.test_loss == pytest.approx(experiment.test(*task.test)[0], rel=1e-5)
    assert row.validation_loss == pytest.approx(experiment.test(*task.validation)[0], rel=1e-5)


def test_one_seed_gives_the_run(tmp_path: Path) -> None:
    config = replace(TINY, acme=True, epochs=1)
    first, again, other = (
        go(tmp_path, replace(config, seed=seed), name)[0][0]["train_loss"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


def test_dropout_with_acme(tmp_path: Path) -> None:
    logged, _ = go(tmp_path, replace(TINY, acme=True, dropout=0.3))
    assert all(math.isfinite(float(row["train_loss"])) for row in logged)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_pyramid_on_the_cpu(tmp_path: Path, bottleneck: bool) -> None:
    config = replace(TINY, model="Pyramid", depth=11 if bottleneck else 8, width_alpha=12, bottleneck=bottleneck,
                     acme=True, epochs=1)  # fmt: skip
    ((row,), sidecar) = go(tmp_path, config)
    assert math.isfinite(float(row["train_loss"]))
    assert sidecar["options"]["model"] == "Pyramid"


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    # The last layer begins with zeros: small steps leave the loss where it is, in either precision.
    config = replace(TINY, lr=1.0, epochs=1)
    losses = [
        float(go(tmp_path, replace(config, precision=precision), precision)[0][0]["train_loss"])
        for precision in ("float32", "bfloat16")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
    reason="reads /proc/cpuinfo of an x86",
)
def test_which_cpus_emulate_bfloat16() -> None:
    """oneDNN's bfloat16 needs AVX-512 (core), or AVX2 with the later conversions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    native = {"avx512bw", "avx512vl", "avx512dq"} <= flags or {"avx2", "avx_ne_convert"} <= flags
    assert train.emulates_bfloat16(torch.device("cpu")) == (not native)


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_emulated_bfloat16_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    precision: str, emulated: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(train, "emulates_bfloat16", lambda device: emulated)
    monkeypatch.setattr(data, "SYNTHETIC_TEST_IMAGES", 100)
    go(tmp_path, replace(TINY, precision=precision, epochs=1, train_images=20, batch_size=10))
    assert ("bfloat16 is emulated" in capsys.readouterr().out) == (emulated and precision == "bfloat16")


def test_compiled_is_the_same_up_to_rounding(tmp_path: Path) -> None:
    config = replace(TINY, train_images=200, epochs=1, acme=True)
    plain, compiled = (
        float(go(tmp_path, replace(config, compile=on), str(on))[0][0]["train_loss"]) for on in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_validation_images_are_held_out(tmp_path: Path) -> None:
    logged, _ = go(tmp_path, replace(TINY, validation=200, epochs=1))
    assert list(logged[0])[-2:] == ["validation_loss", "validation_error"]
    assert 0 < float(logged[0]["validation_error"]) <= 1


def test_divergence_is_a_result(tmp_path: Path) -> None:
    logged, sidecar = go(tmp_path, replace(TINY, lr=1e30, epochs=5))
    assert 1 <= len(logged) < 5
    assert not math.isfinite(float(logged[-1]["train_loss"]))
    assert (sidecar["status"], sidecar["finished"]) == ("diverged", True)
    with pytest.raises(UsageError, match="finished"):
        runlog.settled(tmp_path / "run.csv", replace(TINY, lr=1e30, epochs=5))
    assert runlog.settled(tmp_path / "run.csv", replace(TINY, lr=1e30, epochs=5, resume=True))


def command(config: dict[str, object], output: Path, *more: str) -> list[str]:
    options = [part for name, value in config.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(SCRIPT), *options, "--output", str(output), *more]


@pytest.mark.parametrize(
    "flags",
    [("--acme", "--adam", "--asam"), (), ("--acme", "--average-weights", "--no-annealing")],
    ids=["acme", "sgd", "averaged"],
)
def test_resume_after_sigkill_is_bit_for_bit(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Killed three times, at a random moment after another epoch was logged; the CSV ends as that of the run
    that was left alone."""
    options = {
        "dataset": "synthetic", "train-images": 100, "batch-size": 25, "depth": 4, "width-alpha": 1,
        "epochs": 8, "dropout": 0.2, "device": "cpu", "lr": 0.01, "threads": 1,
    }  # fmt: skip
    undisturbed, killed = tmp_path / "undisturbed.csv", tmp_path / "killed.csv"
    subprocess.run(command(options, undisturbed, *flags), check=True, capture_output=True)
    epoch = float(rows(undisturbed)[-1]["seconds"]) / options["epochs"]
    moments = random.Random(len(flags))
    kills = 0
    while True:
        before = len(rows(killed)) if killed.exists() else 0
        process = subprocess.Popen(
            command(options, killed, "--resume", *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while kills < 3 and process.poll() is None:
            if killed.exists() and len(rows(killed)) > before:
                time.sleep(moments.uniform(0, epoch))
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        _, errors = process.communicate()
        table = killed.read_text()
        assert table.endswith("\n") and len({line.count(",") for line in table.splitlines()}) == 1
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
    assert kills >= 1
    expected, got = rows(undisturbed), rows(killed)
    for row in (*expected, *got):
        del row["seconds"]
    assert got == expected and len(got) == options["epochs"]
    assert json.loads(killed.with_suffix(".json").read_text())["finished"] is True


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    checkpoint = path.with_suffix(".checkpoint")
    cpu = torch.device("cpu")
    train.Experiment(TINY, tasks.load(TINY, cpu), cpu, Acme).save(checkpoint, [])
    with pytest.raises(UsageError, match="differs in lr"):
        train.run(replace(TINY, lr=0.7, resume=True), path)
    content = torch.load(checkpoint, weights_only=True)
    for other in (b"half a checkpoint", b"", pickle.dumps({"of": Path()}), b"PK\x03\x04"):
        checkpoint.write_bytes(other)
        with pytest.raises(
            UsageError, match=r"checkpoint: not a checkpoint of this program \(\w+[^.]*\); delete it"
        ) as said:
            train.run(replace(TINY, resume=True), path)
        assert "\n" not in str(said.value) and checkpoint.read_bytes() == other
    for other, reason in (
        ({"state_dict": {}}, "KeyError: 'options'"),
        ([1, 2], "TypeError"),
        (torch.zeros(3), "IndexError"),
        ({**content, "options": {**content["options"], "warp": 9}}, "ValueError: unknown options: warp"),
        ({**content, "model": {}}, "RuntimeError"),
    ):
        torch.save(other, checkpoint)
        with pytest.raises(
            UsageError, match=f"not a checkpoint of this program .{reason}.*; delete it to start over"
        ):
            train.run(replace(TINY, resume=True), path)


OPTIONS = {
    "dataset": "synthetic", "train-images": 100, "batch-size": 50, "depth": 4, "width-alpha": 1, "epochs": 3,
    "device": "cpu", "threads": 1,
}  # fmt: skip


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run of OPTIONS that was killed after an epoch."""
    path = tmp_path / "run.csv"
    process = subprocess.Popen(command({**OPTIONS, "epochs": 300}, path), stdout=subprocess.DEVNULL)
    while not path.exists() or len(rows(path)) < 1:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    return path


def whole(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.parent.iterdir() if not each.name.startswith(".")}


def test_an_interrupted_run_is_not_begun_anew(interrupted: Path) -> None:
    """Without --resume, with the same options or others, and with --resume and others: refused, nothing deleted."""
    before = whole(interrupted)
    assert interrupted.with_suffix(".checkpoint").name in before
    options = {**OPTIONS, "epochs": 300}
    said = refused(*command(options, interrupted)[2:])
    assert "holds this run, interrupted; choose another name, delete it, or pass --resume to go on." in said
    for more in ([], ["--resume"]):
        said = refused(*command({**options, "lr": 0.7}, interrupted, *more)[2:])
        assert "holds a run, interrupted, that differs in lr; choose another name or delete it." in said
    assert whole(interrupted) == before
    interrupted.with_suffix(".json").unlink()
    assert "interrupted" in refused(*command(options, interrupted)[2:])


def test_a_full_disk_is_one_sentence(interrupted: Path) -> None:
    """A limit on the size of files stands for the disk; what was saved stays, and the run goes on from it later."""
    resource = pytest.importorskip("resource")
    resumed = command({**OPTIONS, "epochs": 300}, interrupted, "--resume")
    checkpoint = interrupted.with_suffix(".checkpoint")
    before, logged = checkpoint.read_bytes(), rows(interrupted)
    half = len(before) // 2
    full = subprocess.run(
        resumed, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (half, half)),
    )  # fmt: skip
    assert (full.returncode, full.stderr) == (
        2,
        f"cifar100.acme.py: {checkpoint}: cannot be written (File too large).\n",
    )
    assert checkpoint.read_bytes() == before and rows(interrupted)[: len(logged)] == logged
    assert not list(interrupted.parent.glob(".*"))
    process = subprocess.Popen(resumed, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert f"resumed after epoch {len(rows(interrupted))}\n" in [process.stdout.readline() for _ in range(2)]
    process.kill()
    process.communicate()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_output_says_what_its_encoding_can(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    shown = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, env=environment, check=True
    )
    assert "auto, cpu, cuda, cuda:1, ?" in shown.stdout.decode(encoding)
    said = refused("--depth", "17", "--output", str(tmp_path / "x.csv"), env={"PYTHONIOENCODING": encoding})
    assert "expected 6n + 4 for a WRN (4, 10, 16, 22, 28, 40, ?)." in said
    done = subprocess.run(
        command(OPTIONS, tmp_path / "±…·.csv", "--acme"), capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


def refused(*arguments: str, env: dict[str, str] | None = None) -> str:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert time.monotonic() - began < 60
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].endswith("."), done.stderr
    assert done.stdout == ""
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--depth", "17"], "--depth 17: expected 6n + 4"),
        (["--model", "Pyramid", "--depth", "16"], "--depth 16: expected 6n + 2"),
        (["--model", "ResNet"], "--model"),
        (["--epochs", "0"], "--epochs 0"),
        (["--epochs", "many"], "--epochs"),
        (["--lr", "-1"], "--lr -1.0"),
        (["--lr", "nan"], "--lr nan"),
        (["--dropout", "1.5"], "--dropout 1.5"),
        (["--momentum", "1"], "--momentum 1.0"),
        (["--train-images", "150"], "--train-images 150"),
        (["--batch-size", "60000"], "--batch-size 60000"),
        (["--validation", "7"], "--validation 7"),
        (["--no-such-option"], "no-such-option"),
        (["--bottleneck"], "--bottleneck"),
        (["--precision", "tf32", "--device", "cpu"], "tf32"),
        (["--find-lr", "--acme"], "--find-lr: expected SGD or Adam"),
        (["--find-lr", "--optimizer", "sgd"], "--find-lr: expected SGD or Adam"),
        (["--find-lr", "--lr", "1"], "--find-lr: expected no --lr 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused(*arguments, "--output", str(tmp_path / "x.csv"))
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    synthetic = ("--dataset", "synthetic", "--output", str(tmp_path / "x.csv"))
    if not torch.cuda.is_available():
        assert "--device cuda" in refused(*synthetic, "--device", "cuda")
    assert "--device warp" in refused(*synthetic, "--device", "warp")
    assert "--acme-script" in refused(*synthetic, "--acme-script", "no_such_package")
    assert "--data-dir" in refused("--data-dir", str(tmp_path), "--output", str(tmp_path / "x.csv"))
    folder = tmp_path / "corrupt" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"not CIFAR-100")
    assert "train" in refused("--data-dir", str(folder.parent), "--output", str(tmp_path / "x.csv"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "--output" in refused("--dataset", "synthetic", "--output", str(blocked / "x.csv"))
    assert not (tmp_path / "x.csv").exists()


def test_what_slurm_calls_no_gpu_is_none(tmp_path: Path) -> None:
    done = subprocess.run(
        command({**OPTIONS, "device": "auto", "epochs": 1}, tmp_path / "x.csv"), capture_output=True, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and ", CPU: " in done.stdout, done.stderr


def test_wandb_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    """Not installed, or nobody is logged in."""
    output = str(tmp_path / "x.csv")
    nobody = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_MODE": "online"}
    said = refused("--dataset", "synthetic", "--wandb", "name", "--output", output, env=nobody)
    assert said.startswith("cifar100.acme.py: --wandb name: ")
    assert "pip install wandb" in said or "wandb login" in said


def test_wandb_gets_the_rows_as_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a recorder in its place; the real package is an extra."""
    calls: list[object] = []
    recorder = SimpleNamespace(
        init=lambda **options: calls.append(options["name"]) or recorder,
        log=lambda values: calls.append(values),
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    logged, _ = go(tmp_path, replace(TINY, epochs=1, wandb="a name"))
    name, values, end = calls
    assert (name, end) == ("a name", "finish")
    assert values == {key: float(text) for key, text in logged[0].items() if text}


def test_finished_runs_are_skipped_without_torch(tmp_path: Path) -> None:
    config = replace(TINY, epochs=1)
    path = tmp_path / "run.csv"
    train.run(config, path)
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    (tmp_path / "torch.py").write_text("raise ImportError('torch must not be needed')\n")
    options = {
        "dataset": "synthetic", "train-images": 400, "batch-size": 100, "depth": 4, "width-alpha": 1,
        "epochs": 1, "device": "cpu",
    }  # fmt: skip
    done = subprocess.run(
        command(options, path, "--resume"), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"already finished: {path}\n"), done.stderr
    assert "finished" in refused(*command(options, path)[2:])
    assert "differs in lr" in refused(*command({**options, "lr": 0.7}, path, "--resume")[2:])
    assert before == (path.read_bytes(), path.with_suffix(".json").read_bytes())


def test_every_published_option_and_default() -> None:
    """The table of options of the experiment's description, against the configuration."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    for name in ["data-dir", "batch-size", "model", "depth", "width-alpha", "bottleneck", "dropout", "epochs", "lr", "label-smoothing", "momentum", "threads", "rho", "eta", "weight-decay", "acme-script", "acme", "asam", "adam", "nesterov", "wandb", "seed", "device", "precision", "compile", "dataset", "train-images", "output", "resume", "validation"]:  # fmt: skip
        assert f"--{name}" in done.stdout
    config = RunConfig()
    published = (200, "WRN", 16, 8, False, 0.0, 200, 0.1, 0.1, 0.9, 2, 1.0, 0.0, 1e-4, "acme", 42)
    assert published == (
        config.batch_size, config.model, config.depth, config.width_alpha, config.bottleneck, config.dropout,
        config.epochs, config.lr, config.label_smoothing, config.momentum, config.threads, config.rho, config.eta,
        config.weight_decay, config.acme_script, config.seed,
    )  # fmt: skip
    pyramid = RunConfig(model="Pyramid")
    assert (pyramid.depth, pyramid.width_alpha) == (110, 40)
    config.check(), pyramid.check()


def test_real_images(tmp_path: Path) -> None:
    """A few steps on CIFAR-100 itself, with an abbreviated option as in the published commands."""
    root = os.environ.get("CIFAR100_ROOT")
    if not root:
        pytest.skip("CIFAR100_ROOT is not set: no real CIFAR-100 to train on")
    options = {
        "data": root,
        "train-images": 500,
        "depth": 4,
        "width-alpha": 1,
        "epochs": 1,
        "batch-size": 100,
    }
    done = subprocess.run(
        command(options, tmp_path / "real.csv", "--acme"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "real.csv")
    assert 4 < float(row["train_loss"]) < 6 and int(row["evaluations"]) == 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is set")
def test_freed_memory_is_kept() -> None:
    """Page faults of eight buffers of 64 MiB, one after the other: those of one."""
    script = f"""
import resource, runpy, sys
names = runpy.run_path({str(SCRIPT)!r})
if sys.argv[1] == "keep":
    names["keep_freed_memory"]()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    b"x" * 2**26
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**26)
"""
    kept, returned = (
        float(subprocess.check_output([sys.executable, "-c", script, how])) for how in ("keep", "not")
    )
    assert kept < 2
    assert returned > 3 * kept
