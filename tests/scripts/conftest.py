"""Made-up studies, written through the run log's own writer, and the scripts' package."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from icassp25.config import RunConfig
from icassp25.peers import PEERS
from icassp25.runlog import Row, RunLog

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # for `study`

SCALE = {"depth": 10, "width_alpha": 2, "train_images": 1000, "batch_size": 100, "epochs": 4}
SIDECAR = {"versions": {"torch": "2.0"}, "commit": "abc1234", "device": "Example CPU", "parameters": 77412}


def write_run(path: Path, diverge_at: int | None = None, **options: object) -> RunConfig:
    """Write a finished run with plausible numbers that depend on its options, or one that diverges."""
    config = RunConfig(**{**SCALE, **options})
    log = RunLog(path, config, SIDECAR)
    power = math.log10(config.lr * (100 if config.adam else 1))
    if config.optimizer != "acme":
        power = math.log10(config.lr / PEERS[config.optimizer].default) - 0.5
    # A fixed step size fares worse the further it starts from the best one; ACME hardly.
    final = 0.62 + 0.01 * config.asam - 0.005 * config.nesterov + 0.002 * (config.seed % 7)
    final += (0.003 * (config.seed % 3) + 0.01) if config.acme else min(0.36, 0.05 * (power + 1) ** 2)
    final += random.Random(path.name).uniform(-0.01, 0.01)
    for epoch in range(1, config.epochs + 1):
        done = epoch / config.epochs
        error = 0.99 - (0.99 - final) * done**0.5
        lost = epoch == diverge_at
        step_size = config.lr * (0.505 + 0.495 * math.cos(math.pi * (epoch - 1) / config.epochs))
        if config.acme:
            step_size = 10 ** (power * (1 - done) ** 2 - 0.5)
        steps = epoch * config.steps_per_epoch
        evaluations = round(steps * config.evaluations_per_step)
        codes = [0.05, 0.35, 0.1, 0.15, 0.1, 0.2 * done, 0.2 * (1 - done), 0.04, 0.01]
        log.append(
            Row(
                epoch=epoch,
                steps=steps,
                evaluations=evaluations,
                seconds=1.25 * epoch * (evaluations // steps) + 0.1 * (config.seed % 5),
                lr=config.lr,
                step_size=step_size,
                train_loss=math.nan if lost else 4.6 * error + 0.1,
                train_error=error + 0.01,
                test_loss=math.inf if lost else 4.6 * error,
                test_error=0.99 if lost else error,
                shares=tuple(codes) if config.acme else None,
                validation_loss=None if not config.validation else math.inf if lost else 4.6 * error,
                validation_error=None if not config.validation else 0.99 if lost else error + 0.002,
            )
        )
        if lost:
            break
    log.finish()
    return config


def run_name(config: RunConfig) -> str:
    """The key of one of the 16 optimizers, as the sweeps name them."""
    flags = [name for name in ("asam", "nesterov", "acme") if getattr(config, name)]
    return "-".join(["adam" if config.adam else "sgd", *flags])


def write_table(folder: Path, seeds: tuple[int, ...], **options: object) -> None:
    for seed in seeds:
        for number in range(16):
            flags = {
                name: bool(number >> bit & 1) for bit, name in enumerate(("adam", "asam", "nesterov", "acme"))
            }
            config = RunConfig(seed=seed, lr=0.001 if flags["adam"] else 0.1, **flags)
            name = f"{run_name(config)}.seed{seed}.csv"
            write_run(folder / name, seed=seed, lr=config.lr, **flags, **options)


def write_lr(folder: Path, seeds: tuple[int, ...], lrs: tuple[float, ...], **options: object) -> None:
    for seed in seeds:
        for lr in lrs:
            for adam in (False, True):
                for acme in (False, True):
                    config = RunConfig(seed=seed, lr=lr, adam=adam, acme=acme)
                    lost = 1 if lr >= 100 and not acme else None
                    name = f"{run_name(config)}.lr{lr:g}.seed{seed}.csv"
                    write_run(folder / name, lost, seed=seed, lr=lr, adam=adam, acme=acme, **options)


SCALES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)


def write_peers(
    folder: Path,
    seeds: tuple[int, ...],
    scales: tuple[float, ...] = SCALES,
    kept: bool = False,
    **options: object,
) -> None:
    """What sweep_peers.sh trains (`kept`), or did before there was `adapt_steps`; SGD diverges from the largest scale."""
    options = {"validation": 500, **options}
    for seed in seeds:
        for scale in scales:
            for adam in (False, True):
                cheap = {
                    "gain": 2.0,
                    "search_steps": 20,
                    **({"adapt_steps": 8} if kept else {"adapt_every": 10}),
                }
                unbiased = {**cheap, "unbiased_squares": True}
                averaged = {**cheap, "unbiased_squares": adam, "anneal_over": 1.5, "average_weights": True}
                mark = "-kept" if kept else ""
                ways = (("", {}), (mark or "-rare", cheap), ("-half", {"epochs": 2}), (f"{mark}-unbiased", unbiased),
                        (f"{mark}-averaged", averaged), (f"{mark}-equal", {**averaged, "limit_train_batches": 0.83}))  # fmt: skip
                for suffix, how in ways:
                    if suffix.endswith(("-half", "-equal")) and scale != 1:
                        continue
                    if suffix.endswith("-unbiased") and not adam:
                        continue
                    lr = (0.001 if adam else 0.1) * scale
                    name = f"{'adam' if adam else 'sgd'}-acme{suffix}.x{scale:g}.seed{seed}.csv"
                    common = {"seed": seed, "lr": lr, "adam": adam, "acme": True}
                    write_run(folder / name, **{**options, **common, **how})
            for name in PEERS:
                lost = 2 if name == "sgd" and scale == 1000 else None
                path = folder / f"{name}.x{scale:g}.seed{seed}.csv"
                default = RunConfig(**{**SCALE, **options, "optimizer": name}).lr
                write_run(path, lost, seed=seed, lr=default * scale, optimizer=name, **options)


LRS = (1e-4, 1e-2, 1.0, 100.0)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the whole study "three", of three seeds. Read only."""
    folder = tmp_path_factory.mktemp("results")
    write_table(folder / "three" / "table", (42, 43, 44))
    write_lr(folder / "three" / "lr", (42, 43), LRS)
    return folder


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """The writers of made-up runs."""
    return SimpleNamespace(run=write_run, table=write_table, lr=write_lr, peers=write_peers)


WITHOUT_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules, "imported torch"
"""


def _run_without_torch(name: str, results: Path, study: str, out: Path, hash_seed: int = 0) -> str:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(ROOT / "scripts" / f"{name}.py")]
    options = ["--results", str(results), "--study", study, "--out", str(out)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def run_without_torch() -> Callable[..., str]:
    """Run a script in a process of its own, with another order of hashes, and see that torch stays out; what it
    prints."""
    return _run_without_torch
