"""The one loop of all iterative solvers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import blo
from blo.solvers import Solver
from tests.lower import solve

SOLVERS = (
    blo.ProjectedGradient(),
    blo.ProjectedGradient(0.5),
    blo.FISTA(),
    blo.FISTA(0.5),
    blo.LBFGS(),
    blo.Newton(),
    blo.FixedPoint(),
)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_lane_without_a_gradient_stops_after_one_step_and_shows_it(solver: Solver) -> None:
    theta = torch.tensor([[0.3], [float("nan")]], dtype=torch.float64)

    def squares(theta: Tensor, z: Tensor) -> Tensor:
        return (z - theta).square().sum(-1)

    for lanes in ([1], [0, 1]):
        lower = blo.LowerProblem(squares, batched=True)
        found = solve(lower, torch.zeros(len(lanes), 1, dtype=torch.float64), solver, theta[lanes])
        assert found.residual is not None and found.residual[-1].isnan()
        assert found.steps <= (1 if lanes == [1] else 60)
        if lanes == [0, 1]:
            assert found.residual[0] <= 1e-8
            torch.testing.assert_close(found.z[0], theta[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [blo.ProjectedGradient, blo.FISTA, blo.LBFGS, blo.Newton], ids=str)
def test_a_solve_that_uses_its_very_last_step_is_confirmed_too(solver: type[Solver]) -> None:
    """The first gradient, 1e13, has a rounding of 0.04, which at the end, where the curvature is 2, is no tolerance."""
    lower = blo.LowerProblem(lambda theta, z: (z.exp() - theta * z).sum())
    theta, z0 = torch.tensor([2.0], dtype=torch.float64), torch.tensor([30.0], dtype=torch.float64)
    for max_steps in range(1, 60):
        found = solve(lower, z0, solver(max_steps=max_steps, tol=1e-8), theta)  # type: ignore[call-arg]
        assert found.residual is not None and found.tol is not None
        slope = float(found.z.exp() - 2)
        if bool(found.residual <= found.tol):
            assert abs(slope) <= 1e-8
