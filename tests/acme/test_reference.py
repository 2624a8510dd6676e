"""`Acme` against the numbers of the published implementation (float64, one CPU thread).

`data/trajectories.npz` holds 96 runs of 40 steps, `data/zero_start.npz` 32 whose last layer starts at zero, as the
experiment's does; `data/decisions.npz` 1200 rows of section 5 of the specification. All were computed with the published code.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from acme import Acme, Decision, adapt

DATA = Path(__file__).parent / "data"
RELATIVE = 1e-9
CODE_WITHOUT_ACME = -9

FILES = {name: np.load(DATA / f"{name}.npz") for name in ("trajectories", "zero_start")}
INDEX = {name: json.loads(file["index"].tobytes()) for name, file in FILES.items()}
all_runs = pytest.mark.parametrize(
    ("file", "number"), [(name, number) for name, runs in INDEX.items() for number in range(len(runs))]
)


def close(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=RELATIVE, atol=RELATIVE * 1e-3)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 8)
        self.output = nn.Linear(8, 3)

    def forward(self, x):
        return self.output(torch.tanh(self.hidden(x)))


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def problem(file: str, name: str):
    numbers = FILES[file]
    model = {"mlp": Mlp, "conv": Conv}[name]().double()
    prefix = f"{name}/init/"
    initial = {
        key.removeprefix(prefix): torch.from_numpy(numbers[key]) for key in numbers if key.startswith(prefix)
    }
    model.load_state_dict(initial, strict=False)
    x, y = (torch.from_numpy(numbers[f"{name}/{letter}"]) for letter in "xy")
    return model, x, y


@all_runs
def test_trajectory(file: str, number: int) -> None:
    run, numbers = INDEX[file][number], FILES[file]
    torch.manual_seed(0)
    model, x, y = problem(file, run["problem"])
    assert [list(p.shape) for p in model.parameters()] == run["param_shapes"]
    optimizer = Acme(model, total_steps=run["total_steps"], **run["options"])
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    losses, step_sizes, codes, params = [], [], [], []
    checkpoints = numbers["checkpoints"].tolist()
    for step in range(len(numbers[f"{number:03d}/loss"])):
        batch = step % len(x)

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = criterion(model(x[batch]), y[batch])
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
        step_sizes.append(optimizer.param_groups[0]["step_size"])
        decision = optimizer.report.decision
        codes.append(CODE_WITHOUT_ACME if decision is None else int(decision))
        if step + 1 in checkpoints:
            params.append(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy())
    np.testing.assert_array_equal(codes, numbers[f"{number:03d}/code"])
    close(losses, numbers[f"{number:03d}/loss"])
    close(step_sizes, numbers[f"{number:03d}/lr"])
    close(params, numbers[f"{number:03d}/params"])


def test_decisions() -> None:
    rows = np.load(DATA / "decisions.npz")["rows"]
    assert len(rows) == 1200
    results = [adapt(*row[:6]) for row in rows]
    np.testing.assert_array_equal([r.decision for r in results], rows[:, 8])
    close([r.target for r in results], rows[:, 6])
    close([r.step for r in results], rows[:, 7])
    assert {r.decision for r in results} == set(Decision) - {Decision.NON_FINITE}
