"""Wrong arguments: each a `ValueError` or `TypeError` that names value and expectation."""

import inspect
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import net
from torch import nn

import acme.acme
from acme import Acme


def test_the_documented_defaults() -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(Acme.__init__).parameters.items()
        if name not in ("self", "model")
    }
    assert defaults == {
        "lr": 1e-3, "betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.0, "acme": False, "adam": False,
        "asam": False, "rho": 1.0, "eta": 0.0, "nesterov": False, "bias_correction": False,
        "differentiable": False, "total_steps": 50_000,
        "max_grad_norm": None, "process_group": None, "compile": False, "capturable": False, "buffers_of": None,
        "gain": 1.0, "adapt_steps": None, "search_steps": 0, "unbiased_squares": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"lr": -0.1}, ValueError, "lr: -0.1 (expected a finite number of at least 0)"),
        ({"lr": math.nan}, ValueError, "lr: nan"),
        ({"lr": math.inf}, ValueError, "lr: inf"),
        ({"lr": "0.1"}, TypeError, "lr: '0.1' (expected a number)"),
        ({"lr": True}, TypeError, "lr: True (expected a number)"),
        ({"lr": torch.ones(2)}, ValueError, "lr: a tensor of shape (2,)"),
        ({"lr": torch.tensor(-1.0)}, ValueError, "lr: -1.0"),
        ({"betas": (1.0, 0.9)}, ValueError, "betas[0]: 1.0 (expected a number in [0, 1))"),
        ({"betas": (0.9, -0.1)}, ValueError, "betas[1]: -0.1"),
        ({"betas": (0.9, math.nan)}, ValueError, "betas[1]: nan"),
        ({"betas": 0.9}, TypeError, "betas: 0.9 (expected a pair"),
        ({"betas": (0.9, 0.99, 0.999)}, TypeError, "betas: (0.9, 0.99, 0.999)"),
        ({"betas": (0.9, None)}, TypeError, "betas[1]: None"),
        ({"epsilon": -1e-8}, ValueError, "epsilon: -1e-08"),
        ({"weight_decay": -1}, ValueError, "weight_decay: -1"),
        ({"rho": -1}, ValueError, "rho: -1"),
        ({"eta": math.inf}, ValueError, "eta: inf"),
        ({"acme": 1}, TypeError, "acme: 1 (expected True or False)"),
        ({"adam": "yes"}, TypeError, "adam: 'yes'"),
        ({"asam": None}, TypeError, "asam: None"),
        ({"nesterov": 0}, TypeError, "nesterov: 0"),
        ({"bias_correction": 1.0}, TypeError, "bias_correction: 1.0"),
        ({"total_steps": 0}, ValueError, "total_steps: 0 (expected at least 1, or None"),
        ({"total_steps": 10.0}, TypeError, "total_steps: 10.0"),
        ({"gain": 0, "acme": True}, ValueError, "gain: 0 (expected a positive number"),
        ({"gain": math.inf, "acme": True}, ValueError, "gain: inf"),
        ({"gain": 2.0}, ValueError, "gain: 2.0 (expected 1 without acme=True)"),
        ({"adapt_steps": 0, "acme": True}, ValueError, "adapt_steps: 0 (expected at least 1, or None"),
        ({"adapt_steps": 2.0, "acme": True}, TypeError, "adapt_steps: 2.0"),
        ({"adapt_steps": 5}, ValueError, "adapt_steps: 5 (expected None without acme=True)"),
        ({"capturable": 1}, TypeError, "capturable: 1 (expected True or False)"),
        ({"capturable": True, "acme": True, "search_steps": 5}, ValueError, "search_steps: 5 (expected 0"),
        ({"search_steps": -1, "acme": True}, ValueError, "search_steps: -1 (expected at least 0"),
        ({"search_steps": True, "acme": True}, TypeError, "search_steps: True"),
        ({"search_steps": 5}, ValueError, "search_steps: 5 (expected 0 without acme=True)"),
        ({"unbiased_squares": 1}, TypeError, "unbiased_squares: 1 (expected True or False)"),
        (
            {"unbiased_squares": True, "adam": True},
            ValueError,
            "expected False without adam=True and bias_corr",
        ),
        (
            {"unbiased_squares": True, "bias_correction": True},
            ValueError,
            "expected False without adam=True and",
        ),
        ({"total_steps": True}, TypeError, "total_steps: True"),
        ({"differentiable": True}, ValueError, "no derivative"),
    ],
    ids=str,
)
def test_wrong_options(options, error, said) -> None:
    with pytest.raises(error) as caught:
        Acme(net(), **options)
    assert said in str(caught.value)
    with pytest.raises(error):  # in a group of its own, too
        Acme([{"params": list(net().parameters()), **options}])


@pytest.mark.parametrize("name", ["maximize", "fused", "foreach", "momentum", "adapt_every", "weight_deacy"])
def test_unknown_options_are_refused(name) -> None:
    with pytest.raises(TypeError, match=name):
        Acme(net(), **{name: True})


@pytest.mark.parametrize("name", ["acme", "adam", "asam", "nesterov", "bias_correction"])
def test_switches_belong_to_the_whole_optimizer(name) -> None:
    with pytest.raises(ValueError, match=f"{name} in a parameter group: True"):
        Acme([{"params": list(net().named_parameters()), name: True}])


def test_numbers_of_other_types() -> None:
    optimizer = Acme(net(), np.float32(0.5), betas=[np.float64(0.5), 0], total_steps=np.int64(7))
    group = optimizer.param_groups[0]
    assert (type(group["lr"]), group["betas"], type(group["total_steps"])) == (float, (0.5, 0.0), int)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ([], ValueError),
        (torch.ones(2), TypeError),
        ([1.0], TypeError),
        ([nn.Parameter(torch.ones(2, dtype=torch.complex64))], TypeError),
        ([{"params": {nn.Parameter(torch.ones(2))}}], TypeError),
        ([nn.Parameter(torch.ones(2)) * 2], ValueError),
    ],
    ids=["empty", "tensor", "number", "complex", "set", "not a leaf"],
)
def test_wrong_parameters(params, error) -> None:
    with pytest.raises(error):
        Acme(params)


def test_asam_without_names_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match="named_parameters"):
        Acme(net().parameters(), asam=True)
    optimizer = Acme(net(), asam=True)
    with pytest.raises(ValueError, match="named_parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    Acme(net().named_parameters(), asam=True)
    Acme([{"params": list(net().named_parameters())}], asam=True)


def test_missing_closure_says_why() -> None:
    optimizer = Acme(net())
    for arguments in ((), (None,)):
        with pytest.raises(
            TypeError, match=r"^Call optimizer.step\(closure\): Acme needs a closure(.|\n)*Hugging Face"
        ):
            optimizer.step(*arguments)
    with pytest.raises(TypeError, match="expected a function"):
        optimizer.step(torch.tensor(1.0))


@pytest.mark.parametrize(
    ("value", "error"),
    [(None, TypeError), ("1", TypeError), (True, TypeError), (torch.ones(2), ValueError),
     (torch.ones((), dtype=torch.complex64), ValueError)],
    ids=str,
)  # fmt: skip
def test_closure_must_return_the_loss(value, error) -> None:
    optimizer = Acme(net(), acme=True)
    with pytest.raises(error, match="Invalid loss"):
        optimizer.step(lambda: value)


def test_the_single_file_works_alone(tmp_path: Path) -> None:
    """Copied into an empty folder, with torch and the standard library only."""
    shutil.copy(acme.acme.__file__, tmp_path / "acme.py")
    program = """
import sys
import torch
from acme import Acme
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torchvision", "pandas", "matplotlib", "scipy", "icassp25"}, loaded
model = torch.nn.Linear(3, 1)
x, y = torch.randn(8, 3), torch.randn(8, 1)
optimizer = Acme(model, acme=True, adam=True, asam=True, nesterov=True)
def closure():
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    return loss
first = optimizer.step(closure)
for _ in range(50):
    last = optimizer.step(closure)
assert last < first
print(sys.modules["acme"].__file__)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{program}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "acme.py")
