"""Data parallel training in two processes: all ranks take the same step, that of one process on the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from common import MODES, mode_id, start
from ranks import CHECKPOINTED, closure_of, halves, small_net, train, whole
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from acme import Acme, find_lr

HERE = Path(__file__).parent


def run_ranks(job: str, folder: Path) -> dict:
    """What rank 0 saved; an error on any rank is one here."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--local-addr=127.0.0.1",
         str(HERE / "ranks.py"), job, str(folder)],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    saved = folder / f"{job}.pt"
    return torch.load(saved) if saved.exists() else {}


def assert_same_trajectory(ours: tuple, model, trace: list) -> None:
    weights, steps = ours
    torch.testing.assert_close(weights, whole(model), rtol=1e-9, atol=1e-12)
    assert [code for _, code in steps] == [code for _, code in trace]
    assert [size for size, _ in steps] == pytest.approx([size for size, _ in trace], rel=1e-9)


@pytest.mark.parametrize("job", ["ddp", "fsdp"])
def test_two_ranks_are_one_process_on_the_whole_batch(job, tmp_path) -> None:
    """All modes, float64, 20 steps; in `ddp` also 60 in float32 (200 in `make test-long`), in which the ranks stay bit-equal."""
    result = run_ranks(job, tmp_path)
    for mode in MODES:
        model = small_net()
        optimizer = Acme(model, start(mode), **mode, max_grad_norm=2.0 if job == "fsdp" else None)
        assert_same_trajectory(result[mode_id(mode)], model, train(model, optimizer, range(20)))
    model = small_net()
    first, second = (torch.nn.functional.mse_loss(model(x), y).item() for x, y in halves(0))
    assert second > 5 * first, "the ranks' losses differ widely"


@pytest.mark.parametrize("job", ["nonfinite", "uneven", "refused"])
def test_ranks(job, tmp_path) -> None:
    """See the functions of these names in ranks.py."""
    run_ranks(job, tmp_path)


def test_two_ranks_find_the_learning_rate_of_one_process(tmp_path) -> None:
    model = small_net()
    alone = find_lr(model, (closure_of(model, model, halves(step)) for step in range(60))).lr
    assert run_ranks("finder", tmp_path) == pytest.approx([alone, alone], rel=1e-6)


def test_checkpoint_of_two_ranks_loads_in_one(tmp_path) -> None:
    """torch.distributed.checkpoint from two shards to one process, which goes on as the two did."""
    result = run_ranks("checkpoint", tmp_path)
    for mode in CHECKPOINTED:
        name = mode_id({**dict.fromkeys(("acme", "adam", "asam", "nesterov"), False), **mode})
        model = small_net()
        optimizer = Acme(model, 0.5, **mode)
        weights, state = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / name, no_dist=True)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
        assert_same_trajectory(result[name], model, train(model, optimizer, range(5, 12)))
