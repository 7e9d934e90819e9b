"""Ratio of two medians with its bootstrap interval: the one statistic that the drivers report."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence


def bootstrap_ratio(
    base: Sequence[float], other: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """``(low, ratio, high)`` of median(base) / median(other), the 95% percentile interval.

    >>> low, ratio, high = bootstrap_ratio([2.0, 2.1, 1.9, 2.0], [1.0, 1.0, 1.1, 0.9])
    >>> low <= ratio <= high and round(ratio, 1) == 2.0
    True
    """
    rng = random.Random(seed)
    ratios = sorted(
        statistics.median(rng.choices(base, k=len(base))) / statistics.median(rng.choices(other, k=len(other)))
        for _ in range(resamples)
    )
    low, high = ratios[int(0.025 * resamples)], ratios[int(0.975 * resamples) - 1]
    return low, statistics.median(base) / statistics.median(other), high
