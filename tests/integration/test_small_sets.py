"""Solves on sets that are small compared with one, and with z: the error relative to the set, against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import blo
from blo._layout import Layout
from blo.sets import Set
from blo.solvers._default import default_solver
from tests.lower import bind

N = 3
#: A matrix with the eigenvalues 0.05, 0.5 and 1.25 that has no coordinate as an eigenvector.
MATRIX = torch.diag(torch.tensor([0.05, 0.5, 1.25]).double())
TURN = torch.eye(N).double() - 2 / 14 * torch.outer(*[torch.tensor([1.0, 2.0, 3.0]).double()] * 2)
HESSIAN = TURN @ MATRIX @ TURN
INNER = torch.tensor([0.3, -0.2, 0.25], dtype=torch.float64)

#: Sets of this size around a centre; each holds `center + size * INNER` in its interior.
SETS: dict[str, Callable[[float, float], Set]] = {
    "a box": lambda size, center: blo.Box(center - size, center + size),
    "a box of tensors": lambda size, center: blo.Box(
        *(torch.full((N,), center + s, dtype=torch.float64) for s in (-size, size))
    ),
    "an l2 ball": lambda size, center: blo.L2Ball(size, center),
    "an l1 ball": lambda size, center: blo.L1Ball(size, center),
}


def assert_solved(made: Set, objective: Callable[[Tensor], Tensor], start: Tensor, size: float, truth: Tensor) -> None:
    """The error is small relative to the set, or the solve reports that it has not converged."""
    problem, z0 = bind(blo.LowerProblem(lambda theta, z: objective(z), made), start)
    found = default_solver(problem.term, True, z0).solve(problem, z0)
    assert found.residual is not None and found.tol is not None
    error = float((found.z - truth).norm()) / size
    rounding = 16 * torch.finfo(torch.float64).eps * float(truth.norm()) / size
    assert error <= 1e-6 + rounding or found.residual > found.tol, (error, found)


@pytest.mark.parametrize("center", [0.0, 1.0])
@pytest.mark.parametrize("size", [1e-4, 1e-7, 1e-9])
@pytest.mark.parametrize("name", SETS)
def test_a_solution_inside_is_right_relative_to_the_set(name: str, size: float, center: float) -> None:
    truth = center + size * INNER

    def objective(z: Tensor) -> Tensor:
        return 0.5 * (z - truth) @ HESSIAN @ (z - truth)

    assert_solved(SETS[name](size, center), objective, truth.new_full((N,), center), size, truth)


@pytest.mark.parametrize("center", [0.0, 1.0])
@pytest.mark.parametrize("size", [1e-7, 1e-12])
def test_the_corner_of_a_box_is_left_for_the_opposite_one(size: float, center: float) -> None:
    low, high = (torch.full((N,), center + side, dtype=torch.float64) for side in (-size, size))
    assert_solved(blo.Box(low, high), lambda z: (z - center).square().sum() - z.sum(), low, size, high)


def test_a_product_is_as_long_as_its_parts_together_if_all_are_bounded() -> None:
    layout = Layout.of((torch.zeros(3).double(), torch.zeros(2).double()), batched=False)
    bounded = blo.Product(blo.Box(0.0, 1e-6), blo.L2Ball(1e-6)).fit(layout).extent
    assert float(torch.as_tensor(bounded)) == pytest.approx(1e-6 * 7**0.5)
    assert blo.Product(blo.Box(0.0, 1e-6), blo.Free()).fit(layout).extent is None
    half_open = blo.Box(torch.zeros(3).double(), torch.tensor([1.0, 1.0, torch.inf]).double())
    extent = blo.Product(half_open, blo.L2Ball(1e-6)).fit(layout).extent
    assert float(torch.as_tensor(extent)) == torch.inf


@pytest.mark.parametrize("unit", [1e-7, 1e-8])
def test_a_coordinate_whose_bounds_are_nearer_than_the_slack_is_reported(unit: float) -> None:
    """The solver stops with a gradient of the small coordinate that looks like a multiplier."""
    units = torch.tensor([unit, 1.0], dtype=torch.float64)

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        y = z / units
        return 0.5 * (y - theta).square().sum() + (y[0] - theta) ** 4 + 0.3 * y.sum().cos()

    lower = blo.LowerProblem(objective, blo.Box(torch.zeros(2).double(), 2 * units))
    theta = torch.tensor(0.01, dtype=torch.float64)
    with pytest.warns(blo.errors.DegenerateWarning):
        found = blo.value_and_hypergrad(lambda t, z: z[0] / unit, lower, theta, 0.5 * units, solver=blo.LBFGS())
    assert found.z[0] / units[0] == pytest.approx(0.02496, abs=1e-5)  # it is an interior solution
