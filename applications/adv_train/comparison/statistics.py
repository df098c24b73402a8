"""Mean and standard deviation over seeds, and paired differences of two methods."""

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
        mean: Mean over the seeds; None if there are none.
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
    """The value of a method minus that of the baseline, over the seeds that both finished.

    Attributes:
        n: Number of these seeds.
        mean: Mean of the differences; None if there are none.
        low: Lower end of the confidence interval with level `LEVEL`; None if there are fewer than two differences or
            all are equal.
        high: Upper end of the interval; None as for `low`.
        p: p-value of the two-sided paired t-test that the mean difference is zero; None as for `low`.
    """

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @classmethod
    def of(cls, values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
        """Compute the differences of values by seed."""
        from scipy import stats  # Not at the top: importing it takes as long as starting a run of a small network.

        seeds = sorted(values.keys() & baseline.keys())
        ours, theirs = np.array([values[s] for s in seeds]), np.array([baseline[s] for s in seeds])
        n, mean = len(seeds), float(np.mean(ours - theirs)) if seeds else None
        # If all differences are equal up to rounding, their standard deviation cannot be estimated.
        if n < 2 or np.ptp(ours - theirs) < 1e-12:
            return cls(n, mean)
        test = stats.ttest_rel(ours, theirs)
        low, high = test.confidence_interval(LEVEL)
        return cls(n, mean, float(low), float(high), float(test.pvalue))
