"""What the tables count: a group's numbers, differences paired by seed, and what a search for the scale gets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from study.runs import Group

SIGNIFICANT, CONFIDENCE = 0.05, 0.95
Numbers = dict[str, object]
"""A row, or a part of one, in full."""


def numbers_of(group: Group) -> Numbers:
    return {
        **spread(list(group.errors.values())),
        "seeds": len(group.finished),
        "diverged": len(group.diverged),
        "evaluations": group.mean("evaluations"),
        "seconds": group.mean("seconds"),
    }


def compare(other: Group, acme: Group) -> Numbers:
    """ACME minus the other in percentage points of test error, paired by seed: the mean difference, its 95 % confidence
    interval by Student's t and the p-value, both None below two common seeds and where all differences are equal."""
    seeds = [seed for seed in acme.errors if seed in other.errors]
    differences = [acme.errors[seed] - other.errors[seed] for seed in seeds]
    low = high = p_value = None
    if len(seeds) > 1 and len(set(differences)) > 1:
        from scipy.stats import ttest_rel

        test = ttest_rel([acme.errors[seed] for seed in seeds], [other.errors[seed] for seed in seeds])
        low, high = map(float, test.confidence_interval(CONFIDENCE))
        p_value = float(test.pvalue)
    return {
        "difference": statistics.fmean(differences) if differences else None,
        "pairs": len(seeds),
        "interval_low": low,
        "interval_high": high,
        "p_value": p_value,
    }


@dataclass(frozen=True)
class Search:
    """One seed's runs of a method over the scales: what the user sees who searches, and who does not.

    `scales` are multiples of the default in ascending order; diverged runs have a validation error of infinity and
    the test error of guessing.
    """

    scales: Sequence[float]
    validation: Sequence[float]
    test: Sequence[float]

    @property
    def best(self) -> float:
        """The scale with the lowest validation error."""
        return self.scales[min(range(len(self.scales)), key=lambda i: self.validation[i])]

    def expected(self, draws: int) -> float:
        """Expected test error of the best by validation of `draws` scales, drawn without replacement.

        With the n scales in ascending order of validation error, the best of k is the i-th (from 1) with probability
        C(n − i, k − 1) / C(n, k): Dodge et al., Show Your Work (EMNLP 2019), there with replacement.
        """
        n = len(self.scales)
        order = sorted(range(n), key=lambda i: self.validation[i])
        ways = math.comb(n, draws)
        return sum(
            math.comb(n - rank, draws - 1) / ways * self.test[i] for rank, i in enumerate(order, start=1)
        )

    def outwards(self, draws: int) -> float:
        """Test error of the best by validation of the `draws` scales nearest to the default, the smaller first."""
        distance = [(round(abs(math.log10(scale)), 6), scale) for scale in self.scales]
        order = sorted(range(len(self.scales)), key=distance.__getitem__)
        return self.test[min(order[:draws], key=lambda i: self.validation[i])]


def spread(values: Sequence[float]) -> Numbers:
    """Mean and sample standard deviation of errors, None below one value and two."""
    return {
        "error_mean": statistics.fmean(values) if values else None,
        "error_std": statistics.stdev(values) if len(values) > 1 else None,
    }
