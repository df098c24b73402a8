"""The steepest descent direction of the 1-norm: one coordinate, ties, bounds; the others are tried with the solvers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

import blo
from blo.solvers import _direction
from tests.strategies import normal

ALONG = blo.OneStep(1.0, "coordinate")
MARCH = blo.ProjectedGradient(1.0, 1, tol=None, direction="coordinate")
BOUNDS: dict[str, Callable[[Any, Any], blo.sets.Set]] = {
    "box": blo.Box,
    "l2 ball": lambda low, high: blo.L2Ball(9.0, 0.0, low, high),
    "l1 ball": lambda low, high: blo.L1Ball(9.0, 0.0, low, high),
}


def step(slope: Tensor, z: Tensor, constraint: blo.sets.Set | None = None, solver: Any = ALONG) -> Tensor:
    """Return where one step along the direction leads for the objective `<slope, z>`, from z."""
    batched = z.ndim > 1
    lower = blo.LowerProblem(lambda t, z: (t * z).sum(-1), constraint or blo.Free(), batched=batched)
    return blo.argmin(lower, slope, z, solver=solver, gradient=blo.Zero(), on_failure="ignore")


@pytest.mark.parametrize("solver", [ALONG, MARCH])
@pytest.mark.parametrize("seed", range(4))
def test_no_step_of_this_length_in_the_1_norm_falls_further(seed: int, solver: Any) -> None:
    """Against a linear programme over `|d|_1 <= 1`, without bounds and at some of them."""
    slope, z = normal(seed, 6), torch.zeros(6, dtype=torch.float64)
    at = np.arange(6) % 3  # at the lower bound, at the upper one, free
    low, high = torch.as_tensor(np.where(at == 0, 0.0, -5.0)), torch.as_tensor(np.where(at == 1, 0.0, 5.0))
    for constraint in (blo.Free(), blo.Box(low, high)):
        sides = (high, -low) if isinstance(constraint, blo.Box) else (torch.full((6,), 5.0),) * 2
        room = [(0, float(most)) for side in sides for most in side]  # upwards, then downwards
        c = np.concatenate([slope, -slope])
        best = linprog(c, A_ub=np.ones((1, 12)), b_ub=[1.0], bounds=room).fun
        moved = step(slope, z, constraint, solver)
        assert float(slope @ moved) == pytest.approx(best, abs=1e-12)
        assert moved.abs().sum() <= 1 + 1e-15


def test_each_lane_moves_its_own_largest_coordinate() -> None:
    slope = torch.tensor([[1.0, -3.0, 2.0], [0.5, 0.1, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    moved = step(slope, torch.zeros(3, 3, dtype=torch.float64))
    assert moved.tolist() == [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_equal_coordinates_share_the_step_whatever_their_order(order: tuple[int, ...]) -> None:
    slope = torch.tensor([2.0, -2.0, 1.0], dtype=torch.float64)[list(order)]
    expected = torch.tensor([-0.5, 0.5, 0.0], dtype=torch.float64)[list(order)]
    assert torch.equal(step(slope, torch.zeros(3, dtype=torch.float64)), expected)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_coordinate_that_a_bound_stops_leaves_the_step_to_the_next(name: str) -> None:
    z = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
    slope = torch.tensor([-9.0, 2.0, 5.0], dtype=torch.float64)  # the first and the last lead out
    assert step(slope, z, BOUNDS[name](0.0, 1.0)).tolist() == [1.0, 0.0, 0.0]
    assert step(-slope, z, BOUNDS[name](0.0, 1.0)).tolist() == [0.0, 0.2, 0.0]  # and inwards none is stopped


def test_bounds_in_a_product_and_of_the_orthant_stop_coordinates() -> None:
    z, slope = (torch.zeros(2, dtype=torch.float64),) * 2, torch.tensor([3.0, 1.0, 9.0, 2.0], dtype=torch.float64)
    lower = blo.LowerProblem(
        lambda t, z: (t[:2] * z[0]).sum() + (t[2:] * z[1]).sum(), blo.Product(blo.Free(), blo.NonNegative())
    )
    moved = blo.argmin(lower, slope, z, solver=ALONG, gradient=blo.Zero())
    assert [part.tolist() for part in moved] == [[-1.0, 0.0], [0.0, 0.0]]


def test_a_lane_that_bounds_stop_altogether_stays() -> None:
    slope = torch.tensor([[1.0, 2.0], [3.0, -2.0]], dtype=torch.float64)
    moved = step(slope, torch.zeros(2, 2, dtype=torch.float64), blo.Box(0.0, 1.0))
    assert moved.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert not _direction._coordinate(slope, torch.ones_like(slope, dtype=torch.bool)).any()  # nor does its momentum


def test_steps_reach_the_solution_of_a_linear_objective_within_ball_and_bounds() -> None:
    """Where the bounds stop the largest coordinates, the rest of the radius goes to the next ones."""
    slope = -torch.tensor([5.0, 4.0, 3.0, 2.0], dtype=torch.float64)
    solver = blo.ProjectedGradient(0.05, 200, tol=None, direction="coordinate")
    moved = step(slope, torch.zeros(4, dtype=torch.float64), blo.L1Ball(2.5, 0.0, 0.0, 1.0), solver)
    np.testing.assert_allclose(moved, [1.0, 1.0, 0.5, 0.0], rtol=0, atol=1e-12)


def test_the_derivative_of_the_direction_is_zero_and_a_nan_stays_visible() -> None:
    theta = torch.tensor([3.0, 1.0], dtype=torch.float64, requires_grad=True)
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - t).square().sum())
    z = blo.argmin(lower, theta, torch.zeros(2).double(), solver=ALONG, gradient=blo.Unrolled())
    assert z.tolist() == [1.0, 0.0] and not torch.autograd.grad(z.sum(), theta)[0].any()
    broken = torch.tensor([[float("nan"), 1.0], [2.0, 1.0]], dtype=torch.float64)
    moved = step(broken, torch.zeros(2, 2, dtype=torch.float64))
    assert moved[0].isnan().all() and moved[1].tolist() == [-1.0, 0.0]
