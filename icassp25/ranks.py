"""One run on several devices: torchrun's processes, each with a part of every batch.

Every rank draws the whole batch's order and augmentation and keeps its part, so that a run on any number of ranks
trains on the same images as one process; batch normalisation takes its moments over the whole batch; losses and
counts are reduced. In one process everything here does nothing.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from icassp25.config import RunConfig, UsageError


def count() -> int:
    """The number of ranks that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def number() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if count() > 1 else 0


def requested() -> int:
    """The number of ranks that torchrun has started, before `start`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(config: RunConfig) -> str:
    """The device of this rank: its own GPU where the ranks train on GPUs."""
    if requested() > 1 and config.device in ("auto", "cuda") and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"--nproc-per-node: rank {local} has no GPU, there are {torch.cuda.device_count()}; "
                "use as many processes as GPUs, or --device cpu."
            )
        return f"cuda:{local}"
    return config.device


def start(config: RunConfig, device: torch.device) -> None:
    """Join the other ranks, if torchrun has started several.

    Raises:
        UsageError: the batch cannot be divided among them.
    """
    if requested() == 1:
        return
    if config.batch_size % requested():
        raise UsageError(
            f"--batch-size {config.batch_size}: expected a multiple of {requested()}, the number of processes."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def distributed(model: nn.Module, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The model, its batch normalisation over all ranks, and the same wrapped to average gradients."""
    if count() == 1:
        return model, model
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model) if device.type == "cuda" else _synchronised(model)
    ids = [device.index] if device.type == "cuda" else None
    # Buffers are equal on all ranks by themselves.
    return model, nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all ranks, on devices for which torch has none (the CPU)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        size = x.numel() // x.shape[1] * count()
        mean = _summed(wide.sum((0, 2, 3))) / size
        centred = wide - mean[:, None, None]
        variance = _summed(centred.square().sum((0, 2, 3))) / size
        with torch.no_grad():
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * (size / (size - 1)), self.momentum)  # type: ignore[union-attr]
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def _summed(values: Tensor) -> Tensor:
    """The sum over the ranks, with its gradient."""
    return all_reduce(values) if count() > 1 else values


def _synchronised(model: nn.Module) -> nn.Module:
    """`model`, with `SyncBatchNorm2d` in the place of its batch normalisation."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
            norm.load_state_dict(child.state_dict())
            setattr(model, name, norm.to(child.weight.device))
        else:
            _synchronised(child)
    return model


def part(batch: Tensor) -> Tensor:
    """This rank's part of a batch [n, …], n a multiple of the ranks (the last of a test may be smaller)."""
    return batch if count() == 1 else batch.tensor_split(count())[number()]


def total(values: Tensor) -> Tensor:
    """The sum over the ranks."""
    if count() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered(value: Any) -> list[Any]:
    """What each rank has, on all ranks."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def together() -> None:
    """Wait for the other ranks."""
    if count() > 1:
        dist.barrier()
