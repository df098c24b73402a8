"""Newton's method, free and on bounds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from blo.operators import Operator
from tests.lower import Counted, assert_unrolls, bind, bowl, logistic, minimise, quadratic
from tests.strategies import normal

TIGHT = blo.Newton(tol=1e-11, max_steps=300)


@pytest.mark.parametrize("linear_solver", [blo.Direct(), blo.CG(max_iter=400, tol=1e-13), blo.Auto(direct=0)], ids=str)
def test_one_step_solves_a_quadratic(linear_solver: blo.linsolve.LinearSolver) -> None:
    matrix, b = quadratic(0, 12, 1e3)
    solver = blo.Newton(max_steps=1, tol=1e-9, linear_solver=linear_solver, forcing=0.0)
    found = minimise(lambda z: 0.5 * z @ matrix @ z - b @ z, torch.zeros(12).double(), solver)
    np.testing.assert_allclose(found.z, np.linalg.solve(matrix.numpy(), b.numpy()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "linear_solver", [blo.Auto(), blo.Direct(), blo.Auto(direct=0), blo.CG(), blo.MINRES(), blo.GMRES()], ids=str
)
@pytest.mark.parametrize("gradient", [blo.Implicit(), blo.Unrolled()], ids=lambda one: type(one).__name__)
def test_a_linear_objective_with_constant_coefficients_ends_at_a_vertex(
    linear_solver: blo.linsolve.LinearSolver, gradient: blo.gradients.Strategy
) -> None:
    """Its gradient has no graph, so torch cannot differentiate it."""
    weights = np.array([1.0, -2.0, 0.5])
    lower = blo.LowerProblem(
        lambda theta, z: (torch.tensor(weights) * z).sum(), lambda theta: blo.Box(-theta.exp(), theta.square())
    )
    theta = torch.tensor([0.3, 0.7, -0.2], dtype=torch.float64, requires_grad=True)
    solver = blo.Newton(linear_solver=linear_solver)
    z = blo.argmin(lower, theta, torch.zeros(3).double(), solver=solver, gradient=gradient)
    (slope,) = torch.autograd.grad(z.sum(), theta)
    t = theta.detach().numpy()
    np.testing.assert_allclose(z.detach(), np.where(weights > 0, -np.exp(t), t**2), rtol=1e-15)
    np.testing.assert_allclose(slope, np.where(weights > 0, -np.exp(t), 2 * t), rtol=1e-12)


@dataclass(frozen=True, eq=False)
class Own(blo.linsolve.LinearSolver):
    """A linear solver of the user's own that can stop early."""

    tol: float = 1e-10
    least: Tensor | float = 0.0

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> blo.linsolve.LinearSolution:
        solver = blo.CG(max_iter=400, tol=self.tol)
        return (solver if isinstance(self.least, float) else solver.relaxed(self.least)).solve(operator, b, x0)

    def relaxed(self, tol: Tensor) -> Own:
        return Own(self.tol, tol)


@pytest.mark.parametrize(
    "linear_solver", [blo.CG(max_iter=400), blo.MINRES(), blo.GMRES(), blo.Auto(direct=0), Own()], ids=str
)
def test_far_from_the_solution_an_iterative_linear_solver_stops_early(
    linear_solver: blo.linsolve.LinearSolver,
) -> None:
    matrix, b = quadratic(0, 40, 1e3)
    scale = torch.tensor([[1.0], [1e4]]).double()

    def function(z: Tensor, scale: Tensor = scale) -> Tensor:
        return (scale * (0.5 * z * (z @ matrix) - b * z)).sum(-1)

    def solve(steps: int, forcing: float) -> blo.solvers.Solution:
        solver = blo.Newton(steps, 1e-9, linear_solver, forcing)
        return minimise(function, torch.zeros(2, 40).double(), solver, batched=True)

    start = scale[:, 0] * b.norm()
    for forcing in (0.5, 0.1):
        found = solve(1, forcing)
        assert found.residual is not None
        assert (found.residual <= forcing * start).all() and (found.residual > 1e-3 * forcing * start).all()
    found, exact = solve(60, 0.5), solve(60, 0.0)
    for each in (found, exact):
        np.testing.assert_allclose(each.z, [np.linalg.solve(matrix.numpy(), b.numpy())] * 2, rtol=1e-6, atol=1e-7)
    assert exact.steps <= 3 and found.steps > exact.steps


def test_a_step_evaluates_the_gradient_twice_and_makes_one_graph_of_it() -> None:
    """Once at the trial, and once at the point for all the Hessian-vector products of the linear solve."""
    loss = Counted(logistic(0))
    found = minimise(loss, torch.zeros(8).double(), TIGHT)
    assert loss.calls == 1 + 2 * found.steps


def test_convergence_is_quadratic() -> None:
    """Each residual is at most a constant times the square of the one before, down to rounding."""
    residuals = []

    def watch(step: int, running: Any) -> None:
        residuals.append(running.state.slope.norm().item())

    lower = blo.LowerProblem(lambda theta, z: logistic(0)(z))
    problem, start = bind(lower, torch.zeros(8).double())
    found = TIGHT.solve(problem, start, watch)
    assert found.residual is not None and found.residual <= 1e-11 and found.steps <= 10
    tail = [r for r in residuals if r > 1e-7]
    assert len(tail) >= 4
    for before, after in itertools.pairwise(residuals):
        assert after <= 200 * before**2 + 1e-15


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_quadratics_on_the_orthant(condition: float) -> None:
    """The optimality conditions name the solution: z >= 0, slope >= 0, z' slope = 0."""
    matrix, b = quadratic(1, 30, condition)
    found = minimise(lambda z: 0.5 * z @ matrix @ z - b @ z, torch.ones(30).double(), TIGHT, blo.NonNegative())
    z, slope = found.z.numpy(), (matrix @ found.z - b).numpy()
    assert 5 < (z > 0).sum() < 25
    assert z.min() == 0 and slope.min() > -1e-10 and np.abs(z * slope).max() < 1e-6


def test_a_full_step_that_overshoots_is_shortened() -> None:
    """Newton's method on `sqrt(1 + z^2)` has the steps `z -> -z^3`, and runs off from 2."""
    found = minimise(lambda z: (1 + z * z).sqrt().sum(), torch.tensor([2.0]).double(), TIGHT)
    assert abs(found.z.item()) < 1e-10


def test_it_stays_where_the_objective_has_values() -> None:
    found = minimise(lambda z: (z - 1e-3 * z.log()).sum(), torch.tensor([5.0, 0.2]).double(), TIGHT)
    torch.testing.assert_close(found.z, torch.full((2,), 1e-3).double(), rtol=1e-9, atol=1e-9)


def test_values_that_drown_in_rounding_do_not_stop_it() -> None:
    loss = logistic(0)
    found = minimise(lambda z: 1e9 + loss(z), torch.zeros(8).double(), TIGHT)
    assert found.residual is not None and found.residual <= 1e-11


def test_lanes_do_not_see_each_other_and_rest_when_done() -> None:
    scales = torch.tensor([1.0, 30.0, 1000.0], dtype=torch.float64)[:, None]
    box = blo.Box(-0.5, 1.5)

    def function(z: Tensor, scale: Tensor = scales) -> Tensor:
        return 0.5 * (scale * z[..., :1] ** 2 + (z[..., 1:] - z[..., :1] ** 2 + 1) ** 2).sum(-1)

    z0 = normal(1, 3, 2)
    together = minimise(function, z0, TIGHT, box, batched=True)
    steps = []
    for lane in range(3):
        alone = minimise(lambda z, i=lane: function(z, scales[i]), z0[lane], TIGHT, box)
        torch.testing.assert_close(together.z[lane], alone.z, rtol=1e-12, atol=1e-12)
        steps.append(alone.steps)
    assert max(steps) == together.steps and min(steps) < together.steps


@pytest.mark.parametrize("constraint", [blo.Free(), blo.Box(-0.3, 0.4)], ids=["free", "box"])
def test_unrolled_is_the_derivative_of_its_steps(constraint: blo.sets.Set) -> None:
    solver = blo.Newton(max_steps=2, tol=None)
    assert_unrolls(blo.LowerProblem(bowl, constraint), 0.5 * normal(4, 4), torch.zeros(3).double(), solver)


def test_single_precision_stays_single() -> None:
    found = minimise(lambda z: (z.cosh() - 0.5 * z).sum(), torch.zeros(3), blo.Newton(tol=1e-6))
    assert found.z.dtype == torch.float32 and found.residual is not None and found.residual <= 1e-6
    np.testing.assert_allclose(found.z, np.arcsinh(0.5), rtol=1e-6)
