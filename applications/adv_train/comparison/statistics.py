"""Mean and spread over seeds, and differences of two methods paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

LEVEL: Final = 0.95


@dataclass(frozen=True)
class Spread:
    """A quantity over the seeds of a method.

    Attributes:
        n: Number of seeds.
        mean: Over the seeds; None without any.
        std: Sample standard deviation, with n - 1 in the denominator; None for fewer than two seeds.
    """

    n: int
    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise the values of the seeds."""
        n = len(values)
        return cls(n, float(np.mean(values)) if n else None, float(np.std(values, ddof=1)) if n > 1 else None)


@dataclass(frozen=True)
class Difference:
    """What a method has more than the baseline on the seeds that both finished.

    Attributes:
        n: Number of these seeds.
        mean: Of the differences; None without any.
        low: Lower end of the interval of confidence `LEVEL`; None where the differences have no spread.
        high: Its upper end, likewise.
        p: Of the paired t-test of a mean difference of zero (two-sided), likewise.
    """

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @classmethod
    def of(cls, values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
        """Compare values by seed."""
        from scipy import stats  # Not at the top: it would double the time until a run of a small network starts.

        seeds = sorted(values.keys() & baseline.keys())
        ours, theirs = np.array([values[s] for s in seeds]), np.array([baseline[s] for s in seeds])
        n, mean = len(seeds), float(np.mean(ours - theirs)) if seeds else None
        # Equal differences, up to rounding, leave nothing to estimate a deviation from.
        if n < 2 or np.ptp(ours - theirs) < 1e-12:
            return cls(n, mean)
        test = stats.ttest_rel(ours, theirs)
        low, high = test.confidence_interval(LEVEL)
        return cls(n, mean, float(low), float(high), float(test.pvalue))
