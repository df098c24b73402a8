"""The simplex: sorting, support, moving sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import blo
from blo import InfeasibleError, Simplex
from blo._layout import Layout
from tests import oracles
from tests.strategies import SEEDS, normal


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_the_simplex_carries_z_like_the_projection_of_a_fixed_point(seed: int) -> None:
    point = normal(seed, 5)
    one = torch.tensor(1.0, dtype=torch.float64)
    simplex = Simplex(one)
    z = simplex.project(point)
    by_autodiff = torch.func.jacrev(lambda s: Simplex(s).motion(simplex, z))(one)
    by_differences = oracles.central_difference(
        lambda s: Simplex(float(s[0])).project(point).numpy(), np.ones(1), step=1e-5
    )
    np.testing.assert_allclose(by_autodiff, by_differences[:, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1e8, -1e8])
def test_a_common_shift_changes_nothing(shift: float) -> None:
    point = torch.tensor([0.5, 0.25, -3.0, 0.75], dtype=torch.float64)
    expected = torch.tensor([1 / 3, 1 / 12, 0.0, 7 / 12], dtype=torch.float64)
    torch.testing.assert_close(Simplex().project(point + shift), expected, rtol=0, atol=abs(shift) * 1e-15 + 1e-15)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_sum_is_kept_at_every_size(scale: float) -> None:
    point = normal(0, 10, 7, scale=scale).float()
    z = Simplex(scale).project(point)
    assert (z >= 0).all()
    torch.testing.assert_close(z.sum(-1) / scale, torch.ones(10))


def test_the_largest_coordinate_takes_all_when_far_ahead() -> None:
    assert torch.equal(Simplex().project(torch.tensor([1e20, 0.0, -1e20])), torch.tensor([1.0, 0.0, 0.0]))


def test_equal_coordinates_share() -> None:
    torch.testing.assert_close(Simplex(2.0).project(torch.full((4,), -7.0)), torch.full((4,), 0.5))


def test_one_coordinate_is_the_sum() -> None:
    simplex = Simplex(2.0)
    z = simplex.project(torch.tensor([-5.0]))
    tangent = simplex.tangent(z, torch.tensor([3.0]))
    assert z == 2.0 and tangent.project(torch.ones(1)) == 0.0
    assert [int(c) for c in tangent.counts()] == [0, 1, 0]


def test_a_zero_without_force_is_counted() -> None:
    z = torch.tensor([0.4, 0.6, 0.0, 0.0], dtype=torch.float64)
    slope = torch.tensor([2.0, 2.0, 2.0, 3.0], dtype=torch.float64)  # the third has the support's multiplier
    assert [int(c) for c in Simplex().tangent(z, slope).counts()] == [1, 3, 1]


def test_each_lane_may_have_its_sum() -> None:
    z = normal(0, 3, 4)
    total = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    simplex = Simplex(total).fit(Layout.of(z, batched=True))
    torch.testing.assert_close(simplex.project(z).sum(-1), total)


@pytest.mark.parametrize("total", [0.0, -1.0, float("nan"), torch.tensor([1.0, 0.0])])
def test_a_sum_that_is_not_positive_is_refused(total: float | torch.Tensor) -> None:
    with pytest.raises(InfeasibleError, match="total > 0"):
        Simplex(total)


def test_a_solver_that_stops_at_a_vertex_within_its_tolerance_does_not_hold_it_there() -> None:
    theta, vertex = torch.tensor(1e-9, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    lower = blo.LowerProblem(lambda t, z: 0.5 * ((z[0] - 1 + t) ** 2 + (z[1] - t) ** 2), Simplex(1.0))
    out = blo.value_and_hypergrad(lambda t, z: z[1], lower, theta, vertex, on_failure="raise")
    assert out.grad.item() == pytest.approx(1.0, rel=1e-12)  # z = (1 - theta, theta)
