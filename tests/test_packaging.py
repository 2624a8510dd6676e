"""The wheel and the source distribution, installed where nothing but torch is, and the types as a user sees them."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

TRAINING = """
import importlib.metadata as metadata
import importlib.resources as resources
import torch
from acme import Acme

assert resources.files("acme").joinpath("py.typed").is_file()
about = metadata.metadata("acme-optimizer")
assert about["Summary"].startswith("ACME") and about["License-Expression"] == "MIT"
assert about["Requires-Python"] == ">=3.10"
versions = {c.split(" :: ")[-1] for c in about.get_all("Classifier") if "Python :: 3." in c}
assert versions == {"3.10", "3.11", "3.12", "3.13"}
torch.manual_seed(0)
model = torch.nn.Linear(4, 3)
optimizer = Acme(model, acme=True, adam=True, asam=True, nesterov=True, total_steps=20)
x, y = torch.randn(32, 4), torch.randint(0, 3, (32,))

def closure():
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss

losses = [optimizer.step(closure).item() for _ in range(20)]
assert losses[-1] < losses[0]
"""

USER = """
import torch
from torch import Tensor, nn
from acme import Acme, Adaptation, Decision, Measured, Move, Report, adapt, get_polynomial_multi_avg_fn

model = nn.Linear(2, 1)
optimizer = Acme(model, lr=1e-3, acme=True, total_steps=None, max_grad_norm=1.0)
scaler = torch.amp.GradScaler("cpu")


def closure() -> Tensor:
    optimizer.zero_grad()
    loss: Tensor = model(torch.ones(1, 2)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


loss: Tensor = optimizer.step(closure)
other: Tensor = optimizer.step(closure, scaler=scaler)
number: float = optimizer.step(lambda: 1.0)
report: Report | None = optimizer.report
if report is not None and report.slope is not None:
    slope: float = report.slope + report.applied
    decision: Decision | None = report.decision
optimizer.load_state_dict(optimizer.state_dict())
with optimizer.step_in_parts():
    optimizer.look(closure())
    optimizer.leap(closure())
result: Adaptation = adapt(1.0, 0.5, 1.0, 0.5, 0.1, 0.9)
size: float = result.target
torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=get_polynomial_multi_avg_fn())


class Rarely(Acme):
    def looks(self) -> bool:
        return super().looks() and self.param_groups[0]["steps"] % 2 == 0

    def decide(self, seen: Measured) -> Move:
        move = super().decide(seen)
        return move._replace(length=move.length / 2)


Rarely(model, acme=True, adapt_steps=60, capturable=True).set_total_steps(100)
"""

WRONG = """
from torch import nn
from acme import Acme

optimizer = Acme(nn.Linear(2, 1), lr="fast")
optimizer = Acme(nn.Linear(2, 1), momentum=0.9)
word: str = optimizer.step(lambda: 1.0)
none: float = optimizer.report.slope
"""


def call(*command: object, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "MYPYPATH")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Both distributions, built from a copy of the files that git knows or would."""
    pytest.importorskip("build", reason="the package `build` is not installed")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    listed = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("results/", "figures/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    call(sys.executable, "-m", "build", "--outdir", folder, source, folder=folder)
    return folder


@pytest.fixture(scope="module")
def user(built, tmp_path_factory) -> Path:
    """The Python of an environment that has torch and the wheel."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pins = [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch==")
    ]
    (folder / "pins.txt").write_text("\n".join(pins))
    (wheel,) = built.glob("*.whl")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]  # little of torch is imported
    call(*pip, "--constraint", folder / "pins.txt", wheel, folder=folder)
    return python


def test_contents(built) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name.startswith("acme_optimizer-") and wheel.name.endswith("-py3-none-any.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    modules = ("__init__.py", "acme.py", "averaging.py", "closures.py", "find_lr.py", "watch.py", "py.typed")
    assert names == {f"acme/{name}" for name in modules}
    with tarfile.open(sdist) as archive:
        members = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "pyproject.toml", "acme/acme.py", "acme/py.typed"} <= members
    assert not [
        name for name in members if name.startswith(("results", "figures", "tests", "icassp25", "scripts"))
    ]


def test_installs_with_torch_alone(user, built, tmp_path) -> None:
    """Wheel first, then the source distribution over it; each trains from outside the repository."""
    (tmp_path / "train.py").write_text(TRAINING)
    installed = call(user, "-m", "pip", "list", "--format=freeze", folder=tmp_path).lower()
    assert "acme-optimizer==" in installed and "torch==" in installed
    assert not [name for name in ("numpy", "pandas", "torchvision", "matplotlib") if f"{name}==" in installed]
    call(user, "-W", "ignore", "train.py", folder=tmp_path)
    (sdist,) = built.glob("*.tar.gz")
    call(user, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", sdist, folder=tmp_path)
    call(user, "-W", "ignore", "train.py", folder=tmp_path)


def test_types_as_a_user_sees_them(user, tmp_path) -> None:
    """mypy in strict mode accepts right uses of the installed package and finds the wrong ones."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "right.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    mypy = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        user,
        "--cache-dir",
        tmp_path / "cache",
    ]
    call(*mypy, "right.py", folder=tmp_path)
    done = subprocess.run(
        [*map(str, mypy), "wrong.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    found = [line.split("error: ")[1] for line in done.stdout.splitlines() if "error: " in line]
    assert len(found) >= 4, done.stdout
    assert all(any(word in line for line in found) for word in ("arg-type", "momentum", "str", "union-attr"))


def test_own_types() -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    call(sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "acme", folder=ROOT)
