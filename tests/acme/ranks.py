"""What the ranks of a distributed training run: `torchrun … ranks.py JOB FOLDER`; see test_distributed.py."""

import copy
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from common import MODES, mode_id, start
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from acme import Acme, find_lr

LONG = int(os.environ.get("ACME_RANKS_STEPS", "60"))
CHECKPOINTED = [dict(acme=True), dict(acme=True, adam=True, asam=True, nesterov=True)]


def small_net(dtype=torch.float64) -> nn.Module:
    """Rows that two ranks do not share equally, and a bias of one element, of which a rank has none."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).to(dtype)


def halves(step: int, dtype=torch.float64) -> list:
    """The batch of a step, in two halves whose losses differ widely."""
    generator = torch.Generator().manual_seed(step % 4)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    y = x[:, :1].sin() + torch.cat([torch.zeros(6, 1), torch.full((6, 1), 3.0)])
    return [(x[:6].to(dtype), y[:6].to(dtype)), (x[6:].to(dtype), y[6:].to(dtype))]


def closure_of(model: nn.Module, optimizer: Acme | nn.Module, parts: list):
    """The mean over `parts`, whose gradients are averaged if the model is distributed and has one of them."""

    def closure():
        optimizer.zero_grad()
        loss = sum(nn.functional.mse_loss(model(x), y) for x, y in parts) / len(parts)
        loss.backward()
        return loss

    return closure


def train(model: nn.Module, optimizer: Acme, steps: range, half: int | None = None) -> list:
    """Steps on one half of each batch, or on all of it; the trajectory of step sizes and decisions."""
    dtype = next(model.parameters()).dtype
    trace = []
    for step in steps:
        parts = halves(step, dtype)
        optimizer.step(closure_of(model, optimizer, parts if half is None else [parts[half]]))
        decision = optimizer.report.decision
        trace.append((optimizer.report.step_size, None if decision is None else int(decision)))
    return trace


def whole(model: nn.Module) -> list[torch.Tensor]:
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def assert_equal_on_all_ranks(values: list) -> None:
    others: list = [None] * dist.get_world_size()
    dist.all_gather_object(others, [v.tolist() if isinstance(v, torch.Tensor) else v for v in values])
    assert all(other == others[0] for other in others), "the ranks differ"


def ddp(folder: Path) -> None:
    """LONG steps in each mode, with float32 and widely different losses; 20 in float64 for comparison."""
    rank, result = dist.get_rank(), {}
    for mode in MODES:
        for name, dtype, steps in (("long", torch.float32, LONG), ("short", torch.float64, 20)):
            inner = small_net(dtype)
            model = DistributedDataParallel(inner)
            # Half of the modes know the wrapped model, the other half has to find the ranks by itself.
            kept = dict(gain=1.5, adapt_steps=30, search_steps=6) if name == "long" and mode["acme"] else {}
            optimizer = Acme(model if mode["nesterov"] else inner, start(mode), **mode, **kept)
            trace = train(model, optimizer, range(steps), rank)
            assert optimizer.param_groups[0]["t"] > 1
            assert_equal_on_all_ranks([*whole(model), trace, optimizer.param_groups[0]["step_size"]])
            for param in model.parameters():
                assert_equal_on_all_ranks(list(optimizer.state[param].values()))
            if name == "short":
                result[mode_id(mode)] = whole(model), trace
    if rank == 0:
        torch.save(result, folder / "ddp.pt")


def nonfinite(folder: Path) -> None:
    """A loss that is not finite on one rank stops all; an overflow at the look-ahead of one rank is all's."""
    rank = dist.get_rank()
    model = DistributedDataParallel(small_net())
    optimizer = Acme(model, 0.05, acme=True)
    before = whole(model)
    for bad in (1, 2):
        calls = 0
        evaluate = closure_of(model, optimizer, [halves(0)[rank]])

        def closure(evaluate=evaluate, bad=bad):
            nonlocal calls
            calls += 1
            loss = evaluate()
            return loss * float("nan") if calls == bad and rank == 1 else loss

        try:
            optimizer.step(closure)
            assert bad == 2 and optimizer.report.decision == -1
        except FloatingPointError:
            assert bad == 1
        assert all(map(torch.equal, before, whole(model)))
    train(model, optimizer, range(10), rank)
    assert_equal_on_all_ranks(whole(model))


def uneven(folder: Path) -> None:
    """Gradients that nobody averages: one warning; none with a group of one rank, which trains by itself."""
    rank = dist.get_rank()
    alone, _ = dist.new_subgroups(group_size=1)
    for group, expected in ((None, 1), (alone, 0)):
        model = small_net()
        optimizer = Acme(model, 0.05, acme=True, process_group=group)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trace = train(model, optimizer, range(5), rank)
        assert len(caught) == expected, [str(w.message) for w in caught]
        assert all("averaged" in str(w.message) for w in caught)
    twin = small_net()
    twin_trace = train(twin, Acme(twin, 0.05, acme=True, process_group=alone), range(5), rank)
    assert trace == twin_trace


def finder(folder: Path) -> None:
    """A learning rate found together, with weights whole or sharded, is that of one process on the whole batch."""
    rank, rates, sharded = dist.get_rank(), [], small_net()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    for model in (DistributedDataParallel(small_net()), sharded):
        before = whole(model)
        steps = (closure_of(model, model, [halves(step)[rank]]) for step in range(60))
        rates.append(find_lr(model, steps).lr)
        assert_equal_on_all_ranks([rates[-1], *whole(model)])
        assert all(map(torch.equal, before, whole(model)))
    if rank == 0:
        torch.save(rates, folder / "finder.pt")


def fsdp(folder: Path) -> None:
    """20 steps in each mode with DTensor parameters: sharded over both ranks, or replicated on them (HSDP)."""
    rank, result = dist.get_rank(), {}
    sharded = init_device_mesh("cpu", (2,))
    replicated = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    for number, mode in enumerate(MODES):
        mesh = replicated if number % 3 == 2 else sharded
        model = small_net()
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = Acme(model, start(mode), **mode, max_grad_norm=2.0)
        trace = train(model, optimizer, range(20), rank)
        assert_equal_on_all_ranks([trace])
        assert all(isinstance(p, DTensor) for p in model.parameters())
        assert all(isinstance(v, DTensor) for s in optimizer.state.values() for v in s.values())
        result[mode_id(mode)] = whole(model), trace
    if rank == 0:
        torch.save(result, folder / "fsdp.pt")


def checkpoint(folder: Path) -> None:
    """Train 5 steps sharded, save, go on; load into a fresh one, and go on alike."""
    rank, result = dist.get_rank(), {}
    for mode in CHECKPOINTED:
        name = mode_id({**dict.fromkeys(("acme", "adam", "asam", "nesterov"), False), **mode})
        model = fully_shard(small_net())
        optimizer = Acme(model, 0.02, **mode)
        train(model, optimizer, range(5), rank)
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": copy.copy(weights), "optimizer": state}, checkpoint_id=folder / name)
        trace = train(model, optimizer, range(5, 12), rank)

        other = fully_shard(small_net())
        fresh = Acme(other, 0.5, **mode)
        weights, state = get_state_dict(other, fresh)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder / name)
        set_state_dict(other, fresh, model_state_dict=weights, optim_state_dict=state)
        assert train(other, fresh, range(5, 12), rank) == trace
        assert all(map(torch.equal, whole(model), whole(other)))
        result[name] = whole(model), trace
    if rank == 0:
        torch.save(result, folder / "checkpoint.pt")


def refused(folder: Path) -> None:
    """FSDP1's flat parameters are refused by name."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for original in (False, True):
        model = FullyShardedDataParallel(
            small_net(torch.float32), use_orig_params=original, device_id=torch.device("cpu")
        )
        try:
            Acme(model, acme=True)
        except TypeError as error:
            assert "fully_shard" in str(error)
        else:
            raise AssertionError("FSDP1 was accepted")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    JOBS = {f.__name__: f for f in (ddp, nonfinite, uneven, finder, fsdp, checkpoint, refused)}
    JOBS[sys.argv[1]](Path(sys.argv[2]))
    dist.barrier()
    dist.destroy_process_group()
    # Without the interpreter's own end, in which a thread of gloo's now and then aborts a rank, with any optimizer.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
