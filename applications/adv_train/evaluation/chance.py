"""The difference of two accuracies on validation images that may be chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

_DEVIATIONS: Final = 4.0
"""The margin in standard deviations of the difference; `chance_margin` gives the false-alarm rate."""

_UNKNOWN: Final = 0.1
"""The margin if a record does not tell the number of its images."""


def chance_margin(first: float, second: float, *records: Mapping[str, Any]) -> float:
    """Return how far two accuracies on validation images may differ by chance.

    The margin is four standard deviations of the difference of two independent proportions at the pooled rate p, that
    is 4 sqrt(p (1 - p) (1 / n + 1 / m)): with n = m = 500 it is 0.055 at p = 0.05 and 0.1 at p = 0.2. Near p = 0 it
    amounts to 17 images. It is 0.1 if a record has no ``val_images``.

    Four deviations and not three, because an alarm compares each epoch with the best epoch so far. If all epochs have
    the same expected accuracy and independent outcomes, the difference exceeds this margin and half of the first
    accuracy in at most 4 of 100,000 pairs, and in at most 1 of 100 runs of 30 epochs (1 of 4 for three deviations, both
    simulated with n = 50 and 500). Epochs share their images, so their outcomes correlate and the rates are lower.

    Args:
        first: An accuracy.
        second: Another one.
        records: The record of each accuracy, or one record of both.
    """
    images = [int(record.get("val_images", 0)) for record in records]
    if not images or 0 in images:
        return _UNKNOWN
    n, m = images[0], images[-1]
    pooled = (n * first + m * second) / (n + m)
    return _DEVIATIONS * math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / n + 1 / m))
