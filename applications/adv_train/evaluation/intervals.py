"""Confidence intervals of an accuracy, for the random choice of the images."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

LEVEL: Final = 0.95
"""Confidence of the intervals in records, tables and reports."""


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion: the probabilities that a z-test does not reject (Wilson, 1927).

    Unlike the interval p ± z sqrt(p (1 - p) / n), with p the observed share, it stays in [0, 1], and its length is not
    zero if p is 0 or 1.

    Args:
        successes: Number of successes.
        n: Number of samples, at least 1, drawn independently.
        level: Confidence level, between 0 and 1.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    # If all or none succeed, one end is exactly 1 or 0, which rounding must not change.
    return 0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half)
