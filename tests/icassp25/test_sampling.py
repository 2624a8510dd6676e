"""Stratified sampling: every round holds every class once, and nothing else is decided."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icassp25.sampling import stratified_order


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square_bound(cells: int) -> float:
    """Five standard deviations above the mean of a chi-square with `cells` − 1 degrees of freedom."""
    return (cells - 1) + 5 * (2 * (cells - 1)) ** 0.5


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    mix=st.randoms(use_true_random=False),
)
def test_every_round_holds_each_remaining_class_once(sizes, seed, mix):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    mix.shuffle(labels)
    order = stratified_order(torch.tensor(labels, dtype=torch.int64), seeded(seed)).tolist()

    assert sorted(order) == list(range(len(labels)))
    drawn = [labels[place] for place in order]
    for turn in range(max(sizes)):
        remaining = [label for label, size in enumerate(sizes) if size > turn]
        assert sorted(drawn[: len(remaining)]) == remaining
        drawn = drawn[len(remaining) :]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_batch_of_200_holds_two_images_of_every_class(seed):
    labels = torch.arange(5_000) * 7 % 100
    batches = labels[stratified_order(labels, seeded(seed))].view(-1, 200)
    assert all(torch.equal(batch.bincount(), torch.full((100,), 2)) for batch in batches)


@pytest.mark.parametrize(
    ("labels", "outcomes"),
    [
        # 2 orders within each of 3 classes, 3! orders of the classes in each of 2 rounds.
        ([0, 1, 2, 2, 1, 0], 2**3 * 6**2),
        # Unequal: 3! orders within class 0, and 2 orders of the classes in the first round.
        ([0, 1, 0, 0], 6 * 2),
    ],
)
def test_all_outcomes_are_equally_likely(labels, outcomes):
    generator, expected = seeded(1), 40
    labels = torch.tensor(labels)
    counts = Counter(tuple(stratified_order(labels, generator).tolist()) for _ in range(outcomes * expected))
    assert len(counts) == outcomes
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < chi_square_bound(outcomes)


def test_the_generator_decides_alone():
    labels = torch.arange(300) % 10
    before = torch.get_rng_state()
    first, again, other = (stratified_order(labels, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)

    generator = seeded(3)
    epochs = [stratified_order(labels, generator) for _ in range(2)]
    assert not torch.equal(*epochs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device():
    labels = torch.arange(1_000, device="cuda") % 100
    order = stratified_order(labels, torch.Generator("cuda").manual_seed(0))
    assert order.device == labels.device
    assert torch.equal(labels[order].view(-1, 100).sort(1).values, labels[:100].expand(10, 100))
