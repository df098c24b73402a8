"""The one loop of all iterative solvers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import blo
from blo._problem import FlatProblem
from blo.solvers import Solver

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
        problem, start, leaves = FlatProblem.of(lower, theta[lanes], torch.zeros(len(lanes), 1, dtype=torch.float64))
        found = solver.solve(problem.bind(leaves).detach(), start)
        assert found.residual is not None and found.residual[-1].isnan()
        assert found.steps <= (1 if lanes == [1] else 60)
        if lanes == [0, 1]:
            assert found.residual[0] <= 1e-8
            torch.testing.assert_close(found.z[0], theta[0], rtol=0, atol=1e-8)
