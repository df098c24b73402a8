"""What the benchmarks measure: time, memory and work, against counts made by hand."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.measure import Passes, peak_mib, race, ratio, relative_error
from benchmarks.registry import Setting


def test_the_peak_counts_what_is_held_at_once_and_not_what_is_made_in_turn() -> None:
    def in_turn() -> None:
        for _ in range(5):
            torch.zeros(2**17, dtype=torch.float64)  # 1 MiB, freed at once

    def at_once() -> object:
        return [torch.zeros(2**17, dtype=torch.float64) for _ in range(5)]

    assert peak_mib(in_turn, torch.device("cpu")) == pytest.approx(1.0, abs=0.01)
    assert peak_mib(at_once, torch.device("cpu")) == pytest.approx(5.0, abs=0.01)


def test_passes_count_products_with_the_data_in_forward_and_backward() -> None:
    data, other = torch.randn(6, 4), torch.randn(4, 4)
    z = torch.randn(4, requires_grad=True)
    with Passes([data]) as passes:
        value = (data @ (other @ z)).square().sum()
        value.backward()
    assert passes.count == 2  # data @ ..., and its transpose on the way back; `other` is not watched


def test_a_race_finds_the_ratio_of_busy_contestants() -> None:
    def busy(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    times = race(
        {"floor": lambda: busy(0.002), "three": lambda: busy(0.006)}, Setting(rounds=5, quick=True), floor="floor"
    )
    assert times["floor"].over_floor == 1.0
    assert times["three"].over_floor == pytest.approx(3.0, rel=0.2)
    assert times["three"].milliseconds == pytest.approx(6.0, rel=0.2)


def test_only_the_wall_clock_counts_the_time_in_which_a_call_waits() -> None:
    times = race({"sleeps": lambda: time.sleep(0.03)}, Setting(rounds=3, quick=True))
    assert times["sleeps"].milliseconds < 15.0 < 30.0 <= times["sleeps"].wall_milliseconds


def test_a_ratio_says_how_far_off_it_may_be() -> None:
    """The interval holds the median of the distribution in about 95 of 100 samples, and tells nothing for five."""
    generator = torch.Generator().manual_seed(0)
    for rounds in (6, 15, 120):
        held = 0
        for _ in range(400):
            noise = torch.randn(rounds, generator=generator, dtype=torch.float64).exp().tolist()
            found, off = ratio([1.1 * slow for slow in noise], [1.0] * rounds)
            ordered = sorted(1.1 * slow for slow in noise)
            beside = next(index for index in range(rounds) if ordered[-1 - index] - ordered[index] <= 2 * off + 1e-12)
            held += ordered[beside] <= 1.1 <= ordered[-1 - beside]
            assert found == pytest.approx(float(torch.tensor(ordered, dtype=torch.float64).quantile(0.5)))
        assert 360 <= held <= 398
    assert ratio([2.0] * 5, [1.0] * 5) == (2.0, float("inf"))


def test_the_relative_error_of_nothing_finite_is_no_small_number() -> None:
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)
    assert not relative_error(torch.tensor([3.0, torch.nan]), exact) <= 1e30
