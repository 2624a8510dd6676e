"""Text and digits: what is trained and tested on, and whole runs of them."""

from __future__ import annotations

import collections
import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from acme import Acme
from icassp25 import digits, peers, tasks, text, train
from icassp25.config import RunConfig, UsageError

CPU = torch.device("cpu")
ALIKE = RunConfig(device="cpu", threads=1, epochs=3, label_smoothing=0.0)
TEXT = replace(
    ALIKE, dataset="text", model="transformer", depth=1, width_alpha=16, dropout=0.1, train_images=40,
    batch_size=8, validation=20,
)  # fmt: skip
DIGITS = replace(
    ALIKE, dataset="digits", model="MLP", depth=2, width_alpha=16, batch_size=100, validation=100
)
BOTH = pytest.mark.parametrize("config", [TEXT, DIGITS], ids=["text", "digits"])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def few_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test text of 20 windows."""
    load = text.load
    monkeypatch.setattr(text, "load", lambda *given: replace(load(*given), test=load(*given).test[:20]))


@pytest.fixture(autouse=True)
def scikit_learn(request: pytest.FixtureRequest) -> None:
    if "digits" in request.node.name:
        pytest.importorskip("sklearn")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- options --------------------------------------------------------------------------------------------


def test_the_data_set_says_the_model() -> None:
    models = {name: RunConfig(dataset=name).model for name in ("cifar100", "synthetic", "text", "digits")}
    assert models == {"cifar100": "WRN", "synthetic": "WRN", "text": "transformer", "digits": "MLP"}
    for dataset in models:
        RunConfig(dataset=dataset).check()
    config = RunConfig(dataset="text")
    assert (config.depth, config.width_alpha, config.steps_per_epoch) == (2, 64, 5625 // 200)
    assert RunConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "text", "model": "WRN"}, "--model WRN with --dataset text: expected --model transformer."),
        ({"model": "MLP"}, "--model MLP with --dataset cifar100: expected --model WRN or --model Pyramid."),
        ({"dataset": "digits", "model": "transformer"}, "--model transformer with --dataset digits"),
        ({"dataset": "text", "bottleneck": True}, "--bottleneck with --model transformer"),
        ({"dataset": "digits", "dropout": 0.1}, "--dropout 0.1: expected 0 with --model MLP"),
        ({"dataset": "digits", "data_dir": "here"}, "--data-dir here with --dataset digits"),
        ({"dataset": "text", "width_alpha": 30}, "--width-alpha 30: expected a multiple of 4"),
        ({"dataset": "digits", "depth": 0}, "--depth 0"),
        ({"dataset": "text", "validation": 5_625}, "--validation 5625: expected a whole number from 0 to 5624"),
        ({"dataset": "text", "train_images": 5_001, "validation": 625}, "--train-images 5001: expected a whole"),
        ({"dataset": "digits", "validation": 1_140}, "--validation 1140: expected a multiple of 10 (as many images"),
        ({"dataset": "digits", "train_images": 15}, "--train-images 15: expected a multiple of 10"),
        ({"dataset": "text", "batch_size": 6_000}, "--batch-size 6000: expected at most the 5625 training windows"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        RunConfig(**options).check()
    assert str(refusal.value).startswith(said)


# ---- text -----------------------------------------------------------------------------------------------


def test_the_parts_of_the_text_share_no_character(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each character's place in place of its code: windows are contiguous, and no part reaches into another."""
    monkeypatch.setattr(text, "encode", lambda whole: torch.arange(len(whole)))
    config = replace(TEXT, train_images=None, validation=625)
    parts = text.load(config, CPU)
    held_out, test = parts.validation, parts.test
    for windows in (held_out, test):
        assert torch.equal(windows - windows[:, :1], torch.arange(65).expand(625, 65))
        assert torch.equal(windows[1:, 0], windows[:-1, -1])
    assert len(parts.train) == 64 * 5_001 and parts.train.max() < held_out.min()
    assert held_out.max() < test.min() and test.max() == text.CHARACTERS - 1
    fewer = text.load(replace(config, train_images=100), CPU)
    assert torch.equal(fewer.train, parts.train[: 64 * 101]) and torch.equal(fewer.validation, held_out)

    task, source = tasks.Windows(fewer), generator()
    firsts = set()
    for _ in range(30):
        order = task.order(source)
        inputs, targets = task.training(order, source)
        assert inputs.shape == targets.shape == (100, 64)
        assert torch.equal(targets, inputs + 1) and targets.max() < len(fewer.train)
        assert torch.equal(inputs.flatten().sort().values, inputs.min() + torch.arange(6_400))
        assert not torch.equal(order, order.sort().values)
        firsts.add(int(inputs.min()))
    assert firsts <= set(range(64)) and len(firsts) > 15
    mine, _ = task.training(order, source, torch.tensor([3, 5]))
    assert torch.equal(mine, inputs[[3, 5]])


def test_the_text_is_text() -> None:
    whole = text.read()
    assert len(whole) == text.CHARACTERS == 400_066
    assert whole.count(" the ") > 1_000 and whole.count("  ") < len(whole) / 50
    codes = text.encode("".join(map(chr, range(32, 127))) + "\né")
    assert codes.tolist() == list(range(97))
    parts = text.load(TEXT, CPU)
    assert parts.sha256 == hashlib.sha256(whole.encode()).hexdigest()
    if torch.__version__.split("+")[0] == "2.13.0":  # the pinned one's text, on every machine
        assert parts.sha256 == "d1066f620751309ecd6684c34a37575e8f90162293a3458670e7d4249874d19d"
    usual, _ = collections.Counter(whole[: text.TRAINING_CHARACTERS]).most_common(1)[0]
    tested = whole[text.TRAINING_CHARACTERS + 1 :]
    assert parts.chance == pytest.approx(1 - tested.count(usual) / len(tested))


def test_too_short_a_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CHARACTERS", 10**8)
    with pytest.raises(UsageError, match=r"^--dataset text: .*expected at least 100,000,000; .*\.$"):
        text.read.__wrapped__()


# ---- digits ---------------------------------------------------------------------------------------------


def test_digits_are_divided_alike_and_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = digits.read()
    assert images.shape == (1_797, 64) and images.min() == 0 and images.max() == 16
    (train_images, train_labels), held_out, test = digits.load(
        replace(DIGITS, validation=300), CPU, torch.float64
    )
    assert test[1].bincount().tolist() == [60] * 10
    assert held_out[1].bincount().tolist() == [30] * 10 and len(train_labels) == 897
    assert train_images.mean().abs() < 1e-9 and train_images.std(correction=0) == pytest.approx(1)

    places = torch.arange(1_797.0, dtype=torch.float64)[:, None].expand(1_797, 64)
    monkeypatch.setattr(digits, "read", lambda: (places, labels))

    def parts_of(config: RunConfig) -> list[set[int]]:
        """The parts' images, as their standardised places; no two are the same."""
        both = [part for part in digits.load(config, CPU, torch.float64) if part is not None]
        seen = torch.cat([part[0][:, 0] for part in both])
        assert len(seen.unique()) == len(seen)
        return [set(part[0][:, 0].tolist()) for part in both]

    assert [len(part) for part in parts_of(replace(DIGITS, validation=300, seed=7))] == [897, 300, 600]
    assert [len(part) for part in parts_of(replace(DIGITS, validation=0))] == [1_197, 600]
    most = replace(DIGITS, validation=1_130, batch_size=10)
    most.check()
    assert [len(part) for part in parts_of(most)] == [67, 1_130, 600]
    few, _, _ = digits.load(replace(DIGITS, train_images=200, validation=300), CPU, torch.float64)
    assert few[1].bincount().tolist() == [20] * 10


def test_without_scikit_learn_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"^--dataset digits: needs the package scikit-learn.*pip install"):
        train.run(DIGITS, tmp_path / "run.csv")
    assert not list(tmp_path.iterdir())


# ---- runs -----------------------------------------------------------------------------------------------


def experiment(config: RunConfig) -> train.Experiment:
    return train.Experiment(config, tasks.load(config, CPU), CPU, Acme)


@BOTH
@pytest.mark.parametrize("name", ["acme", "schedulefree-adamw", "dog"])
def test_resumes_bit_for_bit(config: RunConfig, name: str, few_tested: None, tmp_path: Path) -> None:
    if name == "acme":
        config = replace(config, acme=True, adam=True, lr=1e-3)
    else:
        pytest.importorskip(peers.PEERS[name].module, reason="pip install '.[peers]'")
        config = replace(config, optimizer=name, lr=peers.default_lr(name, config.model))
    first = experiment(config)
    rows = [first.epoch(number) for number in (1, 2)]
    first.save(tmp_path / "checkpoint", rows)
    rows.append(first.epoch(3))
    assert all(0 < row.test_error <= 1 and 0 < row.validation_error <= 1 for row in rows)
    assert all(0 < row.train_error <= 1 for row in rows)

    torch.manual_seed(1)  # what a new process would start from does not matter
    second = experiment(config)
    assert len(second.load(tmp_path / "checkpoint")) == 2
    assert asdict(replace(second.epoch(3), seconds=0.0)) == asdict(replace(rows[2], seconds=0.0))
    state, other = first.tested_model.state_dict(), second.tested_model.state_dict()
    assert all(torch.equal(state[key], other[key]) for key in state)


@BOTH
def test_there_are_no_statistics_to_renew(
    config: RunConfig, few_tested: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("schedulefree", reason="pip install '.[peers]'")
    monkeypatch.setattr(train.Experiment, "_renew_statistics", lambda *_: pytest.fail("renewed"))
    experiment(replace(config, optimizer="schedulefree-sgd", lr=1.0)).epoch(1)


@BOTH
def test_what_a_run_leaves(config: RunConfig, tmp_path: Path) -> None:
    """Which text it was and what guessing it comes to, or the package that the digits are from."""
    path = tmp_path / "run.csv"
    train.run(replace(config, epochs=1, adam=True, lr=1e-3), path)
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["finished"] and about["steps_per_epoch"] == config.steps_per_epoch
    if config.dataset == "text":
        assert about["text_sha256"] == text.load(config, CPU).sha256 and 0.7 < about["chance"] < 0.95
    else:
        assert about["versions"]["scikit-learn"] and "chance" not in about


def test_logged_errors_are_shares_of_the_characters(few_tested: None) -> None:
    run = experiment(replace(TEXT, lr=0.0, dropout=0.0, validation=0))
    row = run.epoch(1)
    inputs, targets = run.task.test
    with torch.no_grad():
        logits = run.model.eval()(inputs)
    wrong = sum(
        int(logits[n, :, place].argmax()) != int(targets[n, place]) for n in range(20) for place in range(64)
    )
    assert row.test_error == wrong / (20 * 64)
    assert row.train_error == pytest.approx(row.test_error, abs=0.1)


def test_another_text_is_not_gone_on_with(
    few_tested: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment(TEXT).save(tmp_path / "run.checkpoint", [])
    monkeypatch.setattr(text, "read", lambda: "x" * text.CHARACTERS)
    with pytest.raises(UsageError, match="differs in the version of --dataset text that was installed"):
        train.run(replace(TEXT, resume=True), tmp_path / "run.csv")
