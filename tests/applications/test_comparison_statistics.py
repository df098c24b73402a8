"""Means, deviations and paired differences against their formulas in NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from adv_train.comparison.statistics import Difference, Spread

ACCURACIES = st.integers(0, 1000).map(lambda n: n / 1000)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(ACCURACIES, ACCURACIES), min_size=2, max_size=8))
def test_mean_deviation_interval_and_p_are_those_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (np.array(values) for values in zip(*pairs, strict=True))
    n, gaps = len(pairs), ours - theirs
    spread = Spread.of(ours.tolist())
    assert spread.n == n and spread.mean == pytest.approx(ours.sum() / n, abs=1e-12)
    assert spread.std == pytest.approx(math.sqrt(((ours - ours.mean()) ** 2).sum() / (n - 1)), abs=1e-12)

    found = Difference.of(dict(enumerate(ours)), dict(enumerate(theirs)))
    assert found.n == n and found.mean == pytest.approx(gaps.mean(), abs=1e-12)
    if np.ptp(gaps) < 1e-12:
        assert (found.low, found.high, found.p) == (None, None, None)
        return
    error = math.sqrt(((gaps - gaps.mean()) ** 2).sum() / (n - 1) / n)
    student = scipy.stats.t(n - 1)
    assert found.low == pytest.approx(gaps.mean() - student.ppf(0.975) * error, abs=1e-9)
    assert found.high == pytest.approx(gaps.mean() + student.ppf(0.975) * error, abs=1e-9)
    assert found.p == pytest.approx(2 * student.sf(abs(gaps.mean()) / error), abs=1e-9)


def test_only_seeds_that_both_finished_are_paired() -> None:
    both = Difference.of({0: 0.5, 1: 0.9, 4: 0.7}, {4: 0.6, 2: 0.1, 0: 0.2})
    assert both == Difference.of({0: 0.5, 4: 0.7}, {0: 0.2, 4: 0.6})
    assert both.n == 2 and both.mean == pytest.approx(0.2) and both.p is not None


@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_differences_without_a_spread_have_no_interval(gap: float) -> None:
    found = Difference.of({seed: 0.3 + 0.1 * seed + gap for seed in range(5)}, {s: 0.3 + 0.1 * s for s in range(5)})
    assert found.n == 5 and found.mean == pytest.approx(gap)
    assert (found.low, found.high, found.p) == (None, None, None)


def test_one_seed_or_none_has_no_spread() -> None:
    assert Spread.of([0.4]) == Spread(1, 0.4, None) and Spread.of([]) == Spread(0, None, None)
    assert Difference.of({0: 0.5}, {0: 0.25}) == Difference(1, 0.25)
    assert Difference.of({0: 0.5}, {1: 0.25}) == Difference(0, None)
