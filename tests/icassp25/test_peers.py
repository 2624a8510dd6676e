"""The peers: how the training loop treats other people's optimizers."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from icassp25 import data, peers, tasks, train
from icassp25.config import RunConfig, UsageError

CPU = torch.device("cpu")
TINY = RunConfig(
    dataset="synthetic", train_images=100, batch_size=25, depth=4, width_alpha=1, epochs=3, dropout=0.1,
    device="cpu", validation=100,
)  # fmt: skip
MODES = [name for name, peer in peers.PEERS.items() if peer.modes]


def tiny(name: str, **options: object) -> RunConfig:
    pytest.importorskip(peers.PEERS[name].module, reason="pip install '.[peers]'")
    return replace(TINY, optimizer=name, lr=peers.PEERS[name].default, **options)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images() -> data.CifarData:
    """The synthetic set with few images to test on."""
    whole = data.load(TINY, CPU)
    return whole._replace(test=(whole.test[0][:100], whole.test[1][:100]))


def experiment(config: RunConfig, images: data.CifarData) -> train.Experiment:
    from acme import Acme

    return train.Experiment(config, tasks.Images(config, images), CPU, Acme)


@pytest.mark.parametrize("name", peers.PEERS)
def test_trains_and_resumes_bit_for_bit(name: str, images: data.CifarData, tmp_path: Path) -> None:
    config = tiny(name, dropout=0.1 * (name != "salsa"))  # which draws masks by the clock
    first = experiment(config, images)
    before = [p.detach().clone() for p in first.model.parameters()]
    rows = [first.epoch(number) for number in (1, 2)]
    first.save(tmp_path / "checkpoint", rows)
    rows.append(first.epoch(3))
    evaluations = [4 * n * peers.PEERS[name].evaluations for n in (1, 2, 3)]
    if name == "salsa":  # and the tries of its search
        assert all(row.evaluations > least for row, least in zip(rows, evaluations, strict=True))
    else:
        assert [row.evaluations for row in rows] == evaluations
    assert any(not torch.equal(old, new) for old, new in zip(before, first.model.parameters(), strict=True))
    if peers.PEERS[name].cosine:
        start = 1.0 if peers.PEERS[name].argument == "d0" else config.lr
        assert [row.lr for row in rows] == pytest.approx([start, 0.7525 * start, 0.2575 * start])
    assert all(row.step_size > 0 and row.validation_error is not None for row in rows)

    torch.manual_seed(1)  # what a new process would start from does not matter
    second = experiment(config, images)
    assert len(second.load(tmp_path / "checkpoint")) == 2
    again = second.epoch(3)
    assert asdict(replace(again, seconds=0.0)) == asdict(replace(rows[2], seconds=0.0))
    state, other = first.tested_model.state_dict(), second.tested_model.state_dict()
    assert all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("name", ["sgd", *MODES])
def test_all_see_the_same_images(name: str, images: data.CifarData) -> None:
    """Taking BatchNorm's statistics anew draws nothing from the generators that the epochs draw from."""
    one, other = experiment(tiny(name), images), experiment(TINY, images)
    states = []
    for each in (one, other):
        torch.manual_seed(0)
        each.epoch(1)
        states.append((each.generator.get_state(), torch.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("name", MODES)
def test_schedule_free_is_tested_at_its_averaged_weights(name: str, images: data.CifarData) -> None:
    tested = experiment(tiny(name), images)
    tested.epoch(1)
    group = tested.peer.param_groups[0]
    assert group["train_mode"] is False  # x, which is also what is saved
    x = [p.detach().clone() for p in tested.model.parameters()]
    statistics = tested.model.state_dict()
    buffers = {key: value.clone() for key, value in statistics.items() if "running" in key}
    tested._renew_statistics(1)
    assert all(not torch.equal(statistics[key], value) for key, value in buffers.items())
    tested.peer.train()
    assert any(not torch.equal(a, b) for a, b in zip(x, tested.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sam", "asam"])
def test_batchnorm_follows_the_first_evaluation_only(name: str, images: data.CifarData) -> None:
    """After a step, the statistics are those of one forward pass at the weights it started from."""
    config = tiny(name, dropout=0.0)
    stepped, looked_at = experiment(config, images), experiment(config, images)
    batch, labels = torch.randn(20, 3, 32, 32), torch.arange(20)
    stepped.model.train(), looked_at.model.train()
    stepped._step(batch, labels, train.Tally(CPU))
    looked_at.model(batch)
    expected, got = looked_at.model.state_dict(), stepped.model.state_dict()
    for key in (key for key in expected if "running" in key):
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=0)
    assert stepped.progress.evaluations == 2


def test_dog_is_tested_at_its_average(images: data.CifarData) -> None:
    tested = experiment(tiny("dog"), images)
    assert tested.tested_model is not tested.model
    tested.epoch(1)
    pairs = list(zip(tested.tested_model.parameters(), tested.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["sgd", "dog", "prodigy", "sam", "momo", "gen", "salsa"])
def test_what_is_not_finite_ends_the_run(name: str, images: data.CifarData) -> None:
    lost = experiment(tiny(name), images)
    with torch.no_grad():
        next(lost.model.parameters()).fill_(float("nan"))
    assert lost.epoch(1).diverged


def test_a_gradient_that_is_not_finite_ends_dogs_run(images: data.CifarData) -> None:
    lost = experiment(tiny("dog"), images)
    weight = next(lost.model.parameters())
    weight.register_hook(lambda gradient: gradient * float("nan"))
    assert lost.epoch(1).diverged


def test_missing_package_is_one_sentence_before_the_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    monkeypatch.setattr(tasks, "load", lambda *_: pytest.fail("loaded the data first"))
    with pytest.raises(UsageError, match=r"needs the package prodigyopt.*pip install prodigyopt"):
        train.run(replace(TINY, optimizer="prodigy", lr=1e-6), tmp_path / "run.csv")


def test_the_version_of_the_package_is_logged(images: data.CifarData) -> None:
    versions = train._describe(experiment(tiny("dog"), images))["versions"]
    assert versions["dog-optimizer"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"asam": True}, "--asam with --optimizer sam: expected --optimizer acme"),
        ({"acme": True}, "--acme with"),
        ({"rho": 0.5}, "--rho 0.5 with"),
        ({"acme_script": "mine"}, "--acme-script mine with"),
        ({"lr": 0.0}, "--lr 0.0 with"),
        ({"optimizer": "dog", "no_annealing": True}, "--no-annealing with --optimizer dog: expected nothing"),
        (
            {"optimizer": "dog", "anneal_over": 2.0},
            "--anneal-over 2.0 with --optimizer dog: expected nothing",
        ),
        ({"anneal_over": 0.5}, "--anneal-over 0.5: expected a finite number of at least 1"),
        (
            {"anneal_over": 2.0, "no_annealing": True},
            "--anneal-over 2.0 with --no-annealing: expected one of the two",
        ),
        ({"optimizer": "dog", "average_weights": True}, "--average-weights with --optimizer dog: expected"),
        ({"optimizer": "schedulefree-sgd", "average_weights": True}, "--average-weights with"),
        ({"optimizer": "salsa", "compile": True}, "--compile with --optimizer salsa: expected nothing"),
        (
            {"optimizer": "salsa", "weight_decay": 0.1},
            "--weight-decay 0.1 with --optimizer salsa: expected nothing",
        ),
        ({"optimizer": "dog", "momentum": 0.5}, "--momentum 0.5 with --optimizer dog: expected nothing"),
        ({"optimizer": "adagrad"}, "--optimizer adagrad: expected one of acme, sgd"),
        ({"optimizer": "schedulefree-sgd", "momentum": 0.0}, "--momentum 0.0 with"),
    ],
)
def test_refused(options: dict, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        RunConfig(**{"optimizer": "sam", **options}).check()
    assert str(refusal.value).startswith(said)


def test_defaults() -> None:
    assert RunConfig().lr == 0.1 and RunConfig().optimizer == "acme"
    for name, peer in peers.PEERS.items():
        config = RunConfig(optimizer=name)
        config.check()
        assert config.lr == peer.default and name in config.name
        assert config.evaluations_per_step == peer.evaluations
    without_norm = (
        RunConfig(optimizer="dog", dataset="digits").lr,
        RunConfig(optimizer="dog", dataset="text").lr,
    )
    assert without_norm == (1e-6, 1e-6)
    older = RunConfig().to_dict()
    del older["optimizer"]
    assert RunConfig.from_dict(older) == RunConfig()
