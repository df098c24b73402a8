"""Newton's method, free and on bounds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import minimize
from torch import Tensor

import blo
from blo.solvers._iterative import run
from tests import oracles
from tests.lower import Counted, bind, logistic, minimise, project, quadratic, rosenbrock, solve
from tests.oracles import QuadraticCase
from tests.strategies import SEEDS, normal, quadratic_cases

quick = settings(deadline=None, max_examples=20)
TIGHT = blo.Newton(tol=1e-11, max_steps=300)


@quick
@given(quadratic_cases(("free", "box")), SEEDS)
def test_it_finds_the_minimiser_from_anywhere(case: QuadraticCase, seed: int) -> None:
    z0 = normal(seed, len(case.c), scale=10.0)
    found = solve(case.lower(), z0, TIGHT, case.start())
    np.testing.assert_allclose(found.z, case.solution(case.theta), rtol=1e-9, atol=1e-9)
    z = found.z.numpy()
    residual = np.linalg.norm(z - project(case, z - case.gradient(case.theta, z)))
    assert found.residual is not None and found.residual <= 1e-11 and abs(float(found.residual) - residual) < 1e-14


@pytest.mark.parametrize("linear_solver", [blo.Direct(), blo.CG(max_iter=400, tol=1e-13), blo.Auto(direct=0)], ids=str)
def test_one_step_solves_a_quadratic(linear_solver: blo.linsolve.LinearSolver) -> None:
    matrix, b = quadratic(0, 12, 1e3)
    solver = blo.Newton(max_steps=1, tol=1e-9, linear_solver=linear_solver, forcing=0.0)
    found = minimise(lambda z: 0.5 * z @ matrix @ z - b @ z, torch.zeros(12).double(), solver)
    np.testing.assert_allclose(found.z, np.linalg.solve(matrix.numpy(), b.numpy()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "linear_solver", [blo.CG(max_iter=400), blo.MINRES(), blo.GMRES(), blo.Auto(direct=0)], ids=str
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
    found = run(TIGHT, problem, start, watch)
    assert found.residual is not None and found.residual <= 1e-11 and found.steps <= 10
    tail = [r for r in residuals if r > 1e-7]
    assert len(tail) >= 4
    for before, after in itertools.pairwise(residuals):
        assert after <= 200 * before**2 + 1e-15


@pytest.mark.parametrize("n", [2, 10])
def test_rosenbrock(n: int) -> None:
    found = minimise(rosenbrock, torch.full((n,), -1.2).double(), TIGHT)
    assert found.residual is not None and found.residual <= 1e-11 and found.steps < 100
    torch.testing.assert_close(found.z, torch.ones(n).double(), rtol=1e-9, atol=1e-9)


def test_rosenbrock_on_a_box_agrees_with_scipy() -> None:
    low, high = np.array([-2.0, 0.1, -0.5, 0.2, -1.0]), np.array([0.5, 2.0, 0.6, 2.0, 2.0])
    start = np.array([-1.0, 1.0, 0.0, 1.0, 2.0])
    found = minimise(rosenbrock, torch.as_tensor(start), TIGHT, blo.Box(torch.as_tensor(low), torch.as_tensor(high)))
    truth = minimize(
        lambda z: float(rosenbrock(torch.as_tensor(z))),
        start,
        jac=lambda z: torch.func.grad(rosenbrock)(torch.as_tensor(z)).numpy(),
        bounds=list(zip(low, high, strict=True)),
        method="L-BFGS-B",
        tol=1e-14,
    )
    assert found.residual is not None and found.residual <= 1e-11
    np.testing.assert_allclose(found.z, truth.x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_quadratics_on_the_orthant(condition: float) -> None:
    """The optimality conditions name the solution: z >= 0, slope >= 0, z' slope = 0."""
    matrix, b = quadratic(1, 30, condition)
    found = minimise(lambda z: 0.5 * z @ matrix @ z - b @ z, torch.ones(30).double(), TIGHT, blo.NonNegative())
    z, slope = found.z.numpy(), (matrix @ found.z - b).numpy()
    assert 5 < (z > 0).sum() < 25
    assert z.min() == 0 and slope.min() > -1e-10 and np.abs(z * slope).max() < 1e-6


@pytest.mark.parametrize("linear_solver", [blo.Direct(), blo.CG(), blo.MINRES()], ids=str)
def test_it_leaves_a_region_of_negative_curvature(linear_solver: blo.linsolve.LinearSolver) -> None:
    """There, plain Newton goes to the maximum at zero."""
    solver = blo.Newton(tol=1e-11, linear_solver=linear_solver)
    found = minimise(lambda z: (0.25 * z**4 - 0.5 * z**2).sum(), torch.tensor([1e-3, -0.2, 0.5]).double(), solver)
    torch.testing.assert_close(found.z, torch.tensor([1.0, -1.0, 1.0]).double(), rtol=1e-9, atol=1e-9)


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
    weights = 0.4 * normal(3, 4, 3)
    solver = blo.Newton(max_steps=2, tol=None)

    def final(theta: Tensor, gradient: Any) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: (weights @ z + t).cosh().log().sum() + 0.05 * z @ z, constraint)
        z: Tensor = blo.argmin(lower, theta, torch.zeros(3).double(), solver=solver, gradient=gradient)
        return z

    theta = 0.5 * normal(4, 4)
    truth = oracles.central_difference(lambda t: final(torch.as_tensor(t), blo.Zero()).numpy(), theta.numpy(), 1e-4)
    assert np.abs(truth).max() > 0.01
    found = torch.autograd.functional.jacobian(lambda t: final(t, blo.Unrolled()), theta)
    np.testing.assert_allclose(found, truth, rtol=1e-8, atol=1e-8)
    found = torch.func.jacrev(lambda t: final(t, blo.Unrolled()))(theta)
    np.testing.assert_allclose(found, truth, rtol=1e-8, atol=1e-8)
    each = torch.vmap(lambda t: final(t, blo.Unrolled()))(torch.stack([theta, 2 * theta]))
    torch.testing.assert_close(each[1], final(2 * theta, blo.Zero()), rtol=1e-12, atol=1e-12)


@quick
@given(quadratic_cases(("free", "box")))
def test_hypergradients_and_transforms(case: QuadraticCase) -> None:
    def value(theta: Tensor) -> Tensor:
        z = blo.argmin(case.lower(), theta, case.z0(), solver=TIGHT, gradient=blo.Implicit(blo.Direct()))
        return case.upper(theta, z)

    truth = case.hypergradient(case.theta)
    np.testing.assert_allclose(torch.func.grad(value)(case.start()), truth, rtol=1e-9, atol=1e-9)
    found = torch.vmap(torch.func.grad(value))(torch.stack([case.start()] * 2))
    np.testing.assert_allclose(found[1], truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("constraint", [blo.L2Ball(1.0), blo.Simplex(1.0)], ids=str)
def test_other_sets_are_refused(constraint: blo.sets.Set) -> None:
    with pytest.raises(blo.StructureError, match="`Newton` bounds each coordinate"):
        minimise(lambda z: z.square().sum(), torch.ones(2), blo.Newton(), constraint)


def test_a_fixed_point_is_refused() -> None:
    with pytest.raises(blo.StructureError, match="no objective"):
        solve(blo.LowerProblem.fixed_point(lambda t, z: z.cos()), torch.ones(2), blo.Newton())


def test_single_precision_stays_single() -> None:
    found = minimise(lambda z: (z.cosh() - 0.5 * z).sum(), torch.zeros(3), blo.Newton(tol=1e-6))
    assert found.z.dtype == torch.float32 and found.residual is not None and found.residual <= 1e-6
    np.testing.assert_allclose(found.z, np.arcsinh(0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"tol": 0.0}, "`tol` must be positive"),
        ({"forcing": 1.0}, "`forcing` must be at least 0 and below 1"),
        ({"forcing": float("nan")}, "`forcing` must be at least 0 and below 1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blo.Newton(**options)
