"""The order in which an epoch draws its images: stratified, so that every batch holds every class alike."""

from __future__ import annotations

import torch
from torch import Tensor

Examples = tuple[Tensor, Tensor]
"""Examples and their targets, int64 [n], or [n, 64] where a model predicts 64 times for each."""


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """One epoch's random order in which each round draws one image of every class.

    Each class's images are shuffled; then, round after round, one image of every class that still has any
    is drawn, the classes in a new random order each round. With c classes of equal size, positions
    k·c … (k+1)·c − 1 hold every class exactly once, so a batch of m·c consecutive positions holds every
    class m times.

    `labels` is int64 [n], the class of every image: any integers, and class sizes may differ. The order is a
    permutation of 0 … n − 1, on the device of labels and generator.
    """
    count, device = len(labels), labels.device

    # A stable sort of a random permutation leaves equal keys in random order, without ties to break.
    shuffled = torch.randperm(count, generator=generator, device=device)
    by_class, order = labels[shuffled].sort(stable=True)
    by_class_index = shuffled[order]
    # An image is drawn in the round that equals its place within its class.
    first_of_class = torch.searchsorted(by_class, by_class)
    rounds = torch.arange(count, device=device) - first_of_class

    shuffled = torch.randperm(count, generator=generator, device=device)
    return by_class_index[shuffled[rounds[shuffled].sort(stable=True).indices]]
