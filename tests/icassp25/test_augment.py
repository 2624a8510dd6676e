"""The training transform: the same pixels as torchvision's, drawn with the published frequencies."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch

from icassp25 import augment
from icassp25.vision import autoaugment, functional

NEAREST = functional.InterpolationMode.NEAREST
OPERATION_IDS = [f"{operation.name}{operation.magnitude:+.3f}" for operation in augment.OPERATIONS]

# Table 7 of the AutoAugment paper: operation, probability, level.
POLICY = """
Invert 0.1 -      Contrast 0.2 6
Rotate 0.7 2      TranslateX 0.3 9
Sharpness 0.8 1   Sharpness 0.9 3
ShearY 0.5 8      TranslateY 0.7 9
AutoContrast 0.5 - Equalize 0.9 -
ShearY 0.2 7      Posterize 0.3 7
Color 0.4 3       Brightness 0.6 7
Sharpness 0.3 9   Brightness 0.7 9
Equalize 0.6 -    Equalize 0.5 -
Contrast 0.6 7    Sharpness 0.6 5
Color 0.7 7       TranslateX 0.5 8
Equalize 0.3 -    AutoContrast 0.4 -
TranslateY 0.4 3  Sharpness 0.2 6
Brightness 0.9 6  Color 0.2 8
Solarize 0.5 2    Invert 0.0 -
Equalize 0.2 -    AutoContrast 0.6 -
Equalize 0.2 -    Equalize 0.6 -
Color 0.9 9       Equalize 0.6 -
AutoContrast 0.8 - Solarize 0.2 8
Brightness 0.1 3  Color 0.7 0
Solarize 0.4 5    AutoContrast 0.9 -
TranslateY 0.9 9  TranslateY 0.7 9
AutoContrast 0.9 - Solarize 0.8 3
Equalize 0.8 -    Invert 0.1 -
TranslateY 0.7 9  AutoContrast 0.9 -
"""
# The magnitude of level 9; level 0 is 0, those between are evenly spaced.
LARGEST = {
    "Rotate": 30,
    "ShearY": 0.3,
    "TranslateX": 150 / 331 * 32,
    "TranslateY": 150 / 331 * 32,
    "Brightness": 0.9,
    "Color": 0.9,
    "Contrast": 0.9,
    "Sharpness": 0.9,
}
# Where torchvision's PIL operations round otherwise than its tensor operations.
ROUNDED_OTHERWISE = {"Color", "Contrast", "Sharpness", "AutoContrast"}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square_bound(cells: int) -> float:
    """Five standard deviations above the mean of a chi-square with `cells` − 1 degrees of freedom."""
    return (cells - 1) + 5 * (2 * (cells - 1)) ** 0.5


def chi_square(counts: torch.Tensor, expected: torch.Tensor | float) -> float:
    return ((counts - expected) ** 2 / expected).sum().item()


def make_images() -> torch.Tensor:
    """Smooth, noisy, flat, dark and two-level images: uint8 [n, 3, 32, 32]."""
    generator = seeded(0)
    coarse = torch.rand(40, 3, 6, 6, generator=generator) * 300 - 20
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").clamp(0, 255)
    noisy = torch.randint(256, (20, 3, 32, 32), generator=generator)
    flat = torch.randint(256, (6, 3, 1, 1), generator=generator).expand(6, 3, 32, 32)
    dark = torch.randint(9, (6, 3, 32, 32), generator=generator)
    two_levels = torch.randint(2, (4, 3, 32, 32), generator=generator) * 255
    # Nearly flat: too few pixels below the highest level for Equalize to do anything, or just enough.
    nearly_flat = torch.full((4, 3, 32, 32), 200)
    nearly_flat[0].view(3, -1)[:, :254] = 3
    nearly_flat[1].view(3, -1)[:, :255] = 3
    nearly_flat[2, 1, 5, 5] = 7
    return torch.cat([part.to(torch.uint8) for part in (smooth, noisy, flat, dark, two_levels, nearly_flat)])


IMAGES = make_images()
MEAN, STD = torch.tensor([0.51, 0.49, 0.44]), torch.tensor([0.27, 0.26, 0.28])


def real_images(count: int) -> torch.Tensor:
    root = os.environ.get("CIFAR100_ROOT")
    if not root:
        pytest.skip("CIFAR100_ROOT does not name a folder with CIFAR-100")
    root = Path(root)
    folder = root if root.name == "cifar-100-python" else root / "cifar-100-python"
    with open(folder / "test", "rb") as file:
        images = pickle.load(file, encoding="latin1")["data"]
    return torch.tensor(images[:count]).view(-1, 3, 32, 32)


def by_torchvision(image: torch.Tensor, operation: augment.Operation) -> torch.Tensor:
    return autoaugment._apply_op(image, *operation, interpolation=NEAREST, fill=None)


def by_pil(image: torch.Tensor, operation: augment.Operation) -> torch.Tensor:
    result = by_torchvision(functional.to_pil_image(image), operation)
    return functional.pil_to_tensor(result)


# ---- AutoAugment: the policy ----------------------------------------------------------------------------


def published_policy() -> list[list[tuple[str, float, list[float]]]]:
    """For each sub-policy its two operations: name, probability, magnitude with sign 0 and with sign 1."""
    policy = []
    for line in POLICY.strip().splitlines():
        words = line.split()
        sub_policy = []
        for name, probability, level in (words[:3], words[3:]):
            if level == "-":
                magnitudes = [0.0, 0.0]
            elif name == "Posterize":
                magnitudes = [8.0 - round(int(level) * 4 / 9)] * 2
            elif name == "Solarize":
                magnitudes = [255 - 255 * int(level) / 9] * 2
            else:
                magnitudes = [sign * LARGEST[name] * int(level) / 9 for sign in (-1, 1)]
            sub_policy.append((name, float(probability), magnitudes))
        policy.append(sub_policy)
    return policy


def test_the_policy_is_the_published_one():
    policy = published_policy()
    assert len(policy) == len(augment.SUB_POLICIES) == len(augment.PROBABILITIES) == 25
    for sub_policy, places, probabilities in zip(
        policy, augment.SUB_POLICIES, augment.PROBABILITIES, strict=True
    ):
        for (name, probability, magnitudes), both_signs, found in zip(
            sub_policy, places, probabilities, strict=True
        ):
            assert found == probability
            assert [augment.OPERATIONS[place].name for place in both_signs] == [name, name]
            assert [augment.OPERATIONS[place].magnitude for place in both_signs] == pytest.approx(
                magnitudes, rel=1e-6
            )


def test_the_operations_are_distinct_and_all_used():
    assert augment.OPERATIONS[0] == augment.IDENTITY
    assert len(set(augment.OPERATIONS)) == len(augment.OPERATIONS)
    used = {place for sub_policy in augment.SUB_POLICIES for signs in sub_policy for place in signs}
    assert used == set(range(1, len(augment.OPERATIONS)))


def test_operations_are_chosen_with_the_policys_frequencies():
    """The joint frequency of the first and the second operation: sub-policy, probability and sign at once."""
    draws, size = 400_000, len(augment.OPERATIONS)
    expected = torch.zeros(size, size, dtype=torch.float64)
    for places, probabilities in zip(augment.SUB_POLICIES, augment.PROBABILITIES, strict=True):
        first, second = torch.zeros(2, size, dtype=torch.float64)
        for row, signs, probability in zip((first, second), places, probabilities, strict=True):
            row[0] += 1 - probability
            for place in signs:
                row[place] += probability / 2
        expected += torch.outer(first, second) * draws / 25

    chosen = augment.draw_operations(draws, seeded(5))
    assert chosen.dtype == torch.int64 and chosen.shape == (draws, 2)
    counts = torch.bincount(chosen[:, 0] * size + chosen[:, 1], minlength=size**2).view(size, size).double()
    possible = expected > 0
    # torchvision applies an operation of probability 0 if the draw is exactly 0: once in 16 million.
    assert counts[~possible].sum() <= 1
    assert chi_square(counts[possible], expected[possible]) < chi_square_bound(int(possible.sum()))


# ---- AutoAugment: the pixels ----------------------------------------------------------------------------


@pytest.mark.parametrize("operation", augment.OPERATIONS, ids=OPERATION_IDS)
def test_each_operation_gives_torchvisions_pixels(operation):
    expected = torch.stack([by_torchvision(image, operation) for image in IMAGES])
    assert torch.equal(augment.apply_operation(IMAGES, operation), expected)


@pytest.mark.parametrize("operation", augment.OPERATIONS, ids=OPERATION_IDS)
def test_each_operation_against_pil(operation):
    expected = torch.stack([by_pil(image, operation) for image in IMAGES])
    difference = (augment.apply_operation(IMAGES, operation).int() - expected.int()).abs().max()
    assert difference <= (1 if operation.name in ROUNDED_OTHERWISE else 0)


def test_the_differences_from_pil_are_real():
    """What the module's documentation says of PIL: each operation it names does differ somewhere."""
    differing = set()
    for operation in augment.OPERATIONS:
        if any(not torch.equal(by_torchvision(i, operation), by_pil(i, operation)) for i in IMAGES):
            differing.add(operation.name)
    assert differing == ROUNDED_OTHERWISE


def test_each_sub_policy_on_real_images():
    images = real_images(100)
    check_sub_policies(images)


def test_each_sub_policy_in_both_signs():
    check_sub_policies(IMAGES[torch.arange(100) * 7 % len(IMAGES)])


def check_sub_policies(images: torch.Tensor) -> None:
    """All 25 × 2 × 2 pairs of operations, one an image, in one batch against torchvision one by one."""
    pairs = [
        (first, second) for places in augment.SUB_POLICIES for first in places[0] for second in places[1]
    ]
    result = augment.apply_operations(images, torch.tensor(pairs))
    for image, found, (first, second) in zip(images, result, pairs, strict=True):
        once = by_torchvision(image, augment.OPERATIONS[first])
        assert torch.equal(found, by_torchvision(once, augment.OPERATIONS[second]))


def test_an_image_does_not_depend_on_its_batch():
    chosen = augment.draw_operations(len(IMAGES), seeded(2))
    together = augment.apply_operations(IMAGES, chosen)
    backwards = augment.apply_operations(IMAGES.flip(0), chosen.flip(0))
    assert torch.equal(backwards.flip(0), together)
    for place in range(0, len(IMAGES), 9):
        alone = augment.apply_operations(IMAGES[place : place + 1], chosen[place : place + 1])
        assert torch.equal(alone[0], together[place])


# ---- crop, flip, normalisation, cutout ------------------------------------------------------------------


def test_crop_cuts_at_every_offset_alike():
    image = torch.stack(
        [
            torch.arange(1, 33).view(32, 1).expand(32, 32),
            torch.arange(1, 33).expand(32, 32),
            torch.full((32, 32), 9),
        ]
    ).to(torch.uint8)
    count = 81 * 60
    draws = augment.draw(count, seeded(7))
    cropped = augment.crop(image.expand(count, 3, 32, 32), draws.top, draws.left)

    # The pixel in the middle tells where it was.
    top, left = (cropped[:, :2, 16, 16].to(torch.int64) - 13).unbind(1)
    for place in range(count):
        offset = (int(top[place]), int(left[place]))
        if place < 200:
            assert torch.equal(cropped[place], functional.crop(functional.pad(image, [4]), *offset, 32, 32))
    cells = torch.bincount(top * 9 + left, minlength=81)
    assert len(cells) == 81
    assert chi_square(cells, 60.0) < chi_square_bound(81)


def test_flip_mirrors_half_of_the_images():
    image = IMAGES[0]
    count = 4_000
    flipped = augment.flip(image.expand(count, 3, 32, 32), augment.draw(count, seeded(8)).flipped)
    mirrored = (flipped == functional.hflip(image)).all(-1).all(-1).all(-1)
    assert torch.equal(flipped[~mirrored], image.expand_as(flipped[~mirrored]))
    assert abs(mirrored.sum() - count / 2) < 5 * (count / 4) ** 0.5


def test_normalise_equals_torchvision():
    expected = functional.normalize(functional.convert_image_dtype(IMAGES), MEAN.tolist(), STD.tolist())
    found = augment.normalise(IMAGES, MEAN, STD)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_cutout_sets_a_clipped_square_to_zero():
    count = 4_096
    images = torch.rand(1, 3, 32, 32, generator=seeded(0)).add(1).expand(count, 3, 32, 32).contiguous()
    draws = augment.draw(count, seeded(9))
    found = augment.cut_squares(images.clone(), draws.cut, draws.cut_top, draws.cut_left)
    removed = found == 0
    assert torch.equal(found, images.masked_fill(removed, 0.0))
    assert torch.equal(removed, removed[:, :1].expand_as(removed))

    removed = removed[:, 0]
    rows, columns = removed.any(2), removed.any(1)
    assert torch.equal(removed, rows[:, :, None] & columns[:, None, :])
    cut = rows.any(1)
    assert abs(cut.sum() - count / 2) < 5 * (count / 4) ** 0.5

    corners = []
    for axis in (rows[cut], columns[cut]):
        first = axis.int().argmax(1)
        last = 31 - axis.flip(1).int().argmax(1)
        corner = torch.where(last < 15, last - 15, first)
        pixel = torch.arange(32)
        expected = (pixel >= corner[:, None]) & (pixel < corner[:, None] + 16)
        assert torch.equal(axis, expected)
        assert corner.min() == -8 and corner.max() == 23
        cells = torch.bincount(corner + 8, minlength=32)
        assert chi_square(cells, len(corner) / 32) < chi_square_bound(32)
        corners.append((corner + 8) // 4)
    # The two axes are drawn independently.
    cells = torch.bincount(corners[0] * 8 + corners[1], minlength=64)
    assert chi_square(cells, len(corners[0]) / 64) < chi_square_bound(64)


# ---- the whole transform --------------------------------------------------------------------------------


def test_augment_is_its_pieces_in_order():
    found = augment.augment(IMAGES, MEAN, STD, seeded(10))
    draws = augment.draw(len(IMAGES), seeded(10))
    images = augment.flip(augment.crop(IMAGES, draws.top, draws.left), draws.flipped)
    images = augment.normalise(augment.apply_operations(images, draws.operations), MEAN, STD)
    assert torch.equal(found, augment.cut_squares(images, draws.cut, draws.cut_top, draws.cut_left))
    assert found.dtype == torch.float32 and found.shape == IMAGES.shape


def test_the_generator_decides_alone_and_the_images_stay():
    images, state = IMAGES.clone(), torch.get_rng_state()
    first, again, other = (augment.augment(images, MEAN, STD, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)

    generator = seeded(1)
    epochs = [augment.augment(images, MEAN, STD, generator) for _ in range(2)]
    assert not torch.equal(*epochs)


def test_every_image_draws_for_itself():
    copies = IMAGES[:1].expand(200, 3, 32, 32)
    results = Counter(result.numpy().tobytes() for result in augment.augment(copies, MEAN, STD, seeded(3)))
    assert len(results) > 190


@pytest.mark.parametrize("images", [torch.rand(1, 3, 32, 32), IMAGES[0], IMAGES[:1, :, :28, :28]])
def test_other_images_are_refused(images):
    for refuse in (augment.normalise, lambda *given: augment.augment(*given, seeded(0))):
        with pytest.raises(ValueError, match=r"Invalid images: .*, expected torch.uint8 \[n, 3, 32, 32\]"):
            refuse(images, MEAN, STD)


def test_an_operation_that_torchvision_does_not_know():
    with pytest.raises(ValueError, match="Swirl"):
        augment.apply_operation(IMAGES, augment.Operation("Swirl", 1.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_pixels_on_a_cuda_device():
    images = IMAGES.cuda()
    for operation in augment.OPERATIONS:
        found = augment.apply_operation(images, operation)
        assert torch.equal(found.cpu(), augment.apply_operation(IMAGES, operation)), operation
    found = augment.augment(images, MEAN.cuda(), STD.cuda(), torch.Generator("cuda").manual_seed(0))
    assert found.device == images.device and found.isfinite().all()
