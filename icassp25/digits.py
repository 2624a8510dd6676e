"""scikit-learn's handwritten digits, 8×8 pixels, divided alike in every run. docs/tasks.md describes them."""

from __future__ import annotations

import torch
from torch import Tensor

from icassp25.config import RunConfig, UsageError
from icassp25.data import SPLIT_SEED
from icassp25.sampling import Examples, stratified_order

TEST_IMAGES = 600
BALANCED_IMAGES = 1_740
"""174 of each digit, the number of those of the rarest; the order's last 57 images are of the others."""


def load(
    config: RunConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Examples, Examples | None, Examples]:
    """Training, validation (None where nothing is held out) and test images [n, 64] with labels, int64 [n].

    The pixels are standardised by the mean and the standard deviation of the training pixels, all together. The
    split is stratified and the same for every seed: the first 600 images of a stratified order are the test set,
    and its last balanced ones are held out: neither `validation` nor `train_images` changes what the other takes.
    """
    images, labels = read()
    order = stratified_order(labels, torch.Generator().manual_seed(SPLIT_SEED))
    end = BALANCED_IMAGES - config.validation
    rest = torch.cat([order[TEST_IMAGES:end], order[BALANCED_IMAGES:]])
    chosen = rest[: config.available_images].sort().values
    mean, std = images[chosen].mean(), images[chosen].std(correction=0)
    images = (images - mean) / std

    def part(places: Tensor) -> Examples:
        places = places.sort().values
        return images[places].to(device, dtype), labels[places].to(device)

    held_out = part(order[end:BALANCED_IMAGES]) if config.validation else None
    return part(chosen), held_out, part(order[:TEST_IMAGES])


def read() -> tuple[Tensor, Tensor]:
    """All 1 797 images, float64 [n, 64] in 0 … 16, and labels int64 [n]; a `UsageError` without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("--dataset digits: needs the package scikit-learn (pip install it).") from None
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).to(torch.float64), torch.from_numpy(labels).to(torch.int64)
