"""How far chance in the choice of images moves an accuracy."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

LEVEL: Final = 0.95
"""Confidence of the intervals in records, tables and reports."""


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Give Wilson's score interval of a share: the probabilities that a z-test does not reject (Wilson, 1927).

    Unlike share ± z sqrt(p (1 - p) / n) it stays in [0, 1] and is no point where the share is 0 or 1.

    Args:
        successes: How many of them.
        n: How many samples, at least 1, drawn independently.
        level: Confidence, between 0 and 1.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    # Where all or none succeed an end is 1 or 0 exactly; rounding must not say otherwise.
    return 0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half)
