"""The training transform as batched tensor operations, on the device that holds the images.

In this order: random crop with zero padding, horizontal flip, AutoAugment with the CIFAR-10 policy (Cubuk
et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019, as torchvision defines it for
8-bit tensors), conversion to [0, 1], normalisation, cutout (DeVries and Taylor, "Improved Regularization of
Convolutional Neural Networks with Cutout", 2017). There is no loop over images and no worker process: a
whole batch or a whole epoch goes through at once.

The operations are torchvision's, pixel by pixel. The images are sorted by the operation drawn for them, and
each operation runs once on all of its images. Two are done otherwise here: those that move pixels by an index
map that is read off torchvision on the CPU, so that every device rounds alike, and Sharpness, without a
convolution.

torchvision's tensor operations and its PIL operations are not the same function everywhere. At the
CIFAR-10 policy's magnitudes, Invert, Posterize, Solarize, Brightness, Equalize, TranslateX, TranslateY,
ShearY and Rotate agree in every pixel; Color, Contrast, Sharpness and AutoContrast round differently, by
at most one grey level. The tests hold both.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from icassp25.vision import autoaugment, equalize_image, functional

IMAGE_SIZE = 32
CROP_PADDING = 4
FLIP_PROBABILITY = 0.5
CUTOUT_PROBABILITY = 0.5
CUTOUT_SIZE = 16
# The corner of the square is uniform in −8 … 23, so its centre is uniform over the image.
CUTOUT_FIRST_CORNER = -8
CUTOUT_LAST_CORNER = 23
MAGNITUDE_BINS = 10  # as torchvision's AutoAugment.forward


class Operation(NamedTuple):
    """An AutoAugment operation with its signed magnitude, in the units of torchvision's `_apply_op`."""

    name: str
    magnitude: float


IDENTITY = Operation("Identity", 0.0)
_GEOMETRIC = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"})


def _read_policy() -> tuple[list[Operation], list[list[list[int]]], list[list[float]]]:
    """torchvision's CIFAR-10 policy: the distinct operations, their places and their probabilities."""
    policy = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy.CIFAR10)
    space = policy._augmentation_space(MAGNITUDE_BINS, (IMAGE_SIZE, IMAGE_SIZE))
    operations = {IDENTITY: 0}

    def both_signs(name: str, level: int | None) -> list[int]:
        magnitudes, signed = space[name]
        magnitude = 0.0 if level is None else float(magnitudes[level])
        both = [Operation(name, -magnitude if signed else magnitude), Operation(name, magnitude)]
        return [operations.setdefault(operation, len(operations)) for operation in both]

    places = [[both_signs(name, level) for name, _, level in pair] for pair in policy.policies]
    probabilities = [[probability for _, probability, _ in pair] for pair in policy.policies]
    return list(operations), places, probabilities


# OPERATIONS: the distinct operations, the identity first; the tables below hold places in this list.
# SUB_POLICIES: [25][2][2], by sub-policy, first or second operation, and sign (0 negative, 1 positive).
# PROBABILITIES: [25][2], of applying the operation.
OPERATIONS, SUB_POLICIES, PROBABILITIES = _read_policy()


class Draws(NamedTuple):
    """All that `augment` draws, one entry an image: tensors whose first dimension is n."""

    top: Tensor  #: int64 [n], 0 … 8, of the crop
    left: Tensor
    flipped: Tensor  #: bool [n]
    operations: Tensor  #: int64 [n, 2], places in `OPERATIONS`
    cut: Tensor  #: bool [n]
    cut_top: Tensor  #: int64 [n, 1], corner of the square
    cut_left: Tensor


def draw(count: int, generator: torch.Generator) -> Draws:
    """Draw for `count` images, on the generator's device."""
    source = dict(generator=generator, device=generator.device)
    top, left = torch.randint(2 * CROP_PADDING + 1, (2, count), **source)
    flipped = torch.rand(count, **source) < FLIP_PROBABILITY
    operations = draw_operations(count, generator)
    cut = torch.rand(count, **source) < CUTOUT_PROBABILITY
    corners = torch.randint(CUTOUT_FIRST_CORNER, CUTOUT_LAST_CORNER + 1, (2, count, 1), **source)
    return Draws(top, left, flipped, operations, cut, *corners)


def draw_operations(count: int, generator: torch.Generator) -> Tensor:
    """The two operations of each image, int64 [count, 2]: places in `OPERATIONS`, 0 where not applied.

    Draws one of 25 sub-policies, and for each of its two operations whether it is applied, and its sign.
    """
    source = dict(generator=generator, device=generator.device)
    sub_policies = torch.tensor(SUB_POLICIES, device=generator.device)
    probabilities = torch.tensor(PROBABILITIES, device=generator.device)
    sub_policy = torch.randint(len(SUB_POLICIES), (count,), **source)
    applied = torch.rand(count, 2, **source) <= probabilities[sub_policy]
    sign = torch.randint(2, (count, 2), **source)
    chosen = sub_policies[sub_policy].gather(2, sign[:, :, None]).squeeze(2)
    return torch.where(applied, chosen, 0)


def augment(
    images: Tensor, mean: Tensor, std: Tensor, generator: torch.Generator, share: slice | Tensor = slice(None)
) -> Tensor:
    """The whole training transform: crop, flip, AutoAugment, [0, 1], normalise, cutout.

    Every image draws for itself, from `generator`, on the device of `images`. The draws are made for all
    together, so the same generator state gives the same result only for the same number of images.

    Args:
        images: uint8 [n, 3, 32, 32].
        mean, std: float32 [3], of the training set, per channel, in [0, 1].
        share: the places of m images, where only they are wanted.

    Returns:
        float32 [m, 3, 32, 32]: the result for all, at the places of `share`.
    """
    _check(images)
    draws = Draws(*(drawn[share] for drawn in draw(len(images), generator)))
    images = flip(crop(images[share], draws.top, draws.left), draws.flipped)
    images = normalise(apply_operations(images, draws.operations), mean, std)
    return cut_squares(images, draws.cut, draws.cut_top, draws.cut_left)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(image / 255 − mean) / std, per channel: the whole test transform.

    uint8 [n, 3, 32, 32] becomes float32, a new tensor; `mean` and `std` are float32 [3], in [0, 1].
    """
    _check(images)
    return images.to(torch.float32).div_(255).sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"Invalid images: {images.dtype} {list(images.shape)}, expected torch.uint8 [n, 3, 32, 32]."
        )


def crop(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Pad by 4 black pixels on each side, then cut 32×32 at `top` and `left`."""
    padded = torch.nn.functional.pad(images, (CROP_PADDING,) * 4)
    # All 9×9 crops as one view of the padded images: [n, 3, 9, 9, 32, 32], no copy.
    crops = padded.unfold(2, IMAGE_SIZE, 1).unfold(3, IMAGE_SIZE, 1)
    return crops[torch.arange(len(images), device=images.device), :, top, left]


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror those that are `flipped` left to right."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def cut_squares(images: Tensor, cut: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Set a 16×16 square, as far as it is inside, to 0 (on normalised images the mean) of those that are `cut`."""
    pixel = torch.arange(IMAGE_SIZE, device=images.device)
    rows = (pixel >= top) & (pixel < top + CUTOUT_SIZE) & cut[:, None]
    columns = (pixel >= left) & (pixel < left + CUTOUT_SIZE)
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def apply_operations(images: Tensor, chosen: Tensor) -> Tensor:
    """Apply to each image its operations, in their order: places in `OPERATIONS`, int64 [n, k]; a new tensor."""
    for column in chosen.unbind(1):
        order = column.argsort(stable=True)
        grouped = images[order]
        counts = torch.bincount(column, minlength=len(OPERATIONS)).tolist()
        for operation, group in zip(OPERATIONS, grouped.split(counts), strict=True):
            if len(group) and operation != IDENTITY:
                group.copy_(apply_operation(group, operation))
        images = torch.empty_like(images)
        images[order] = grouped
    return images


def apply_operation(images: Tensor, operation: Operation) -> Tensor:
    """Apply one operation to every image; each pixel equals that of torchvision's `_apply_op`."""
    name, magnitude = operation
    if name in _GEOMETRIC:
        source_map = _source_map(operation, images.device)
        channels = images.reshape(-1, IMAGE_SIZE**2)
        moved = channels.gather(1, (source_map - 1).clamp_(min=0).expand(channels.shape))
        return moved.mul_(source_map > 0).view(images.shape)
    if name == "Equalize":
        return equalize_image(images)  # `_apply_op` goes from image to image
    if name == "Sharpness":
        return _adjust_sharpness(images, 1.0 + magnitude)
    return _torchvision_operation(images, operation)


def _torchvision_operation(images: Tensor, operation: Operation) -> Tensor:
    nearest = functional.InterpolationMode.NEAREST
    return autoaugment._apply_op(images, *operation, interpolation=nearest, fill=None)


@functools.lru_cache(maxsize=256)
def _source_map(operation: Operation, device: torch.device) -> Tensor:
    """Where each pixel of the result comes from: int64 [1024], 0 for black, else 1 + the source's place.

    Read off torchvision, which is given an image whose pixels are their own places. The map is always made
    on the CPU: a coordinate half-way between two pixels may round otherwise on another device.
    """
    places = torch.arange(1, IMAGE_SIZE**2 + 1, dtype=torch.float32).view(1, 1, IMAGE_SIZE, IMAGE_SIZE)
    return _torchvision_operation(places, operation).flatten().to(device, torch.int64)


def _adjust_sharpness(images: Tensor, factor: float) -> Tensor:
    """factor · image + (1 − factor) · smoothed image, where the smoothed image keeps the border pixels.

    The smoothing kernel is 1/13 · [[1, 1, 1], [1, 5, 1], [1, 1, 1]], rounded. Sums of 8-bit levels are
    exact in 16 bits and a thirteenth is never half-way between integers, so this equals torchvision's
    convolution in every pixel: in a third of its time on a CPU, and on a GPU without cuDNN's choice of an
    algorithm for each number of images.
    """
    levels = images.to(torch.int16)
    columns = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    total = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:] + 4 * levels[:, :, 1:-1, 1:-1]
    smoothed = images.to(torch.float32)
    smoothed[:, :, 1:-1, 1:-1] = (total.to(torch.float32) / 13).round_()
    return (factor * images).add_(smoothed.mul_(1.0 - factor)).clamp_(0, 255).to(torch.uint8)
