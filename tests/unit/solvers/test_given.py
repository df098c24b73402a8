"""The solution that a loop of the caller's own has found."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from blo.solvers import Problem, Solution, Solver

A = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.5]])
B = np.array([[1.0, 0.5], [-0.3, 2.0], [0.7, 0.1]])
THETA = torch.tensor([0.4, -0.9], dtype=torch.float64)


def quartic(theta: Tensor, z: Tensor) -> Tensor:
    """`z' A z / 2 + sum(z^4) / 4 - (B theta)' z`, whose Hessian changes with z."""
    a, b = torch.as_tensor(A), torch.as_tensor(B)
    return 0.5 * z @ a @ z + 0.25 * z.pow(4).sum() - (b @ theta) @ z


def upper(theta: Tensor, z: Tensor) -> Tensor:
    return 0.5 * (z - 1.0).square().sum() + theta.sum()


def trained(steps: int) -> Tensor:
    """Return the weights of a plain loop in torch."""
    z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([z], lr=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        quartic(THETA, z).backward()
        optimizer.step()
    return z


def formula(z: np.ndarray) -> np.ndarray:
    """Return the hypergradient of the implicit function theorem at z, in NumPy."""
    hessian = A + np.diag(3 * z**2)
    return 1.0 + B.T @ np.linalg.solve(hessian, z - 1.0)


def test_the_hypergradient_is_that_of_the_formula_at_the_point_and_comes_without_a_warning() -> None:
    lower = blo.LowerProblem(quartic)
    for steps in (3, 400):
        z = trained(steps)
        point = z.detach().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out = blo.value_and_hypergrad(upper, lower, THETA, z, solver=blo.Given())
            theta = THETA.clone().requires_grad_()
            upper(theta, blo.argmin(lower, theta, z, solver=blo.Given())).backward()
        assert torch.equal(out.z, z.detach()) and out.report.lower_steps == 0
        np.testing.assert_allclose(out.grad, formula(point), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(theta.grad, formula(point), rtol=1e-12, atol=1e-12)
        residual = np.linalg.norm(A @ point + point**3 - B @ THETA.numpy())
        assert out.report.lower_residual == pytest.approx(residual, rel=1e-9, abs=1e-14)
        assert out.report.lower_status is blo.Status.GIVEN
        assert out.report.ok == (steps == 400)
        first = str(out.report).splitlines()[0]
        assert (
            first
            == f"lower solve    the point was given, not solved for, residual {out.report.lower_residual:.2e}, 0 steps"
        )


def test_at_the_solution_it_is_the_derivative_of_the_solution() -> None:
    """Against central differences of Newton's method in NumPy."""

    def solution(theta: np.ndarray) -> np.ndarray:
        z = np.zeros(3)
        for _ in range(50):
            z = z - np.linalg.solve(A + np.diag(3 * z**2), A @ z + z**3 - B @ theta)
        return z

    def value(theta: np.ndarray) -> float:
        return float(0.5 * ((solution(theta) - 1.0) ** 2).sum() + theta.sum())

    step, theta = 1e-5, THETA.numpy()
    slopes = [(value(theta + step * e) - value(theta - step * e)) / (2 * step) for e in np.eye(2)]
    out = blo.value_and_hypergrad(upper, blo.LowerProblem(quartic), THETA, trained(600), solver=blo.Given())
    np.testing.assert_allclose(out.grad, slopes, rtol=1e-8, atol=1e-9)


def test_a_linear_solve_that_stops_early_is_told() -> None:
    gradient = blo.Implicit(blo.CG(max_iter=1))
    with pytest.warns(blo.ConvergenceWarning, match="the linear solve has not converged in 1 of 1") as seen:
        out = blo.value_and_hypergrad(
            upper, blo.LowerProblem(quartic), THETA, trained(3), solver=blo.Given(), gradient=gradient
        )
    assert len(seen) == 1 and out.report.linear_status is blo.Status.UNCONVERGED
    assert out.report.linear_residual is not None and out.report.linear_residual > 0.05 and not out.report.ok
    approximate = blo.Implicit(blo.CG(max_iter=1, tol=None))
    out = blo.value_and_hypergrad(
        upper, blo.LowerProblem(quartic), THETA, trained(600), solver=blo.Given(), gradient=approximate
    )
    assert f"relative residual {out.report.linear_residual:.2e}" in str(out.report) and not out.report.ok


def test_a_tolerance_is_held_against_the_point() -> None:
    for solver in (blo.Given(tol=1e-6), blo.External(lambda theta, z0: z0, tol=1e-6)):
        with pytest.warns(blo.ConvergenceWarning, match=r"the lower solve has not converged.*tolerance 1.00e-06"):
            out = blo.value_and_hypergrad(upper, blo.LowerProblem(quartic), THETA, trained(3), solver=solver)
        assert out.report.lower_status is blo.Status.UNCONVERGED
        out = blo.value_and_hypergrad(upper, blo.LowerProblem(quartic), THETA, trained(400), solver=solver)
        assert out.report.lower_status is blo.Status.CONVERGED and out.report.ok


def test_a_function_gets_constants_and_gives_the_point() -> None:
    point = trained(7).detach()
    theta = THETA.clone().requires_grad_()

    def found(given: Tensor, z0: Tensor) -> Tensor:
        assert not given.requires_grad and torch.equal(given, THETA) and torch.equal(z0, torch.zeros(3).double())
        return point

    z = blo.argmin(blo.LowerProblem(quartic), theta, torch.zeros(3).double(), solver=blo.External(found, tol=math.inf))
    assert torch.equal(z, point)
    upper(theta, z).backward()
    np.testing.assert_allclose(theta.grad, formula(point.numpy()), rtol=1e-12, atol=1e-12)


def test_it_maps_over_points() -> None:
    points = torch.stack([trained(2).detach(), trained(9).detach()])

    def slope(z: Tensor) -> Tensor:
        value = lambda theta: upper(theta, blo.argmin(blo.LowerProblem(quartic), theta, z, solver=blo.Given()))  # noqa: E731
        return torch.func.grad(value)(THETA)

    found = torch.func.vmap(slope)(points)
    np.testing.assert_allclose(found, [formula(z) for z in points.numpy()], rtol=1e-10, atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(blo.StructureError, match="`Given` cannot be unrolled, because it makes no steps"):
        theta = THETA.clone().requires_grad_()
        z0 = torch.zeros(3).double()
        blo.argmin(blo.LowerProblem(quartic), theta, z0, solver=blo.Given(), gradient=blo.Unrolled())
    for tol in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"`Given.tol` must be positive"):
            blo.Given(tol=tol)


class Held(Solver):
    """Also takes the start as the solution."""

    takes_start = True

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        return Solution(z0, None, math.inf, steps=0)


def test_a_fit_needs_a_function_that_follows_theta() -> None:
    lower, optimizer = blo.LowerProblem(quartic), lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    z0 = torch.zeros(3, dtype=torch.float64)
    for taken in (blo.Given(), Held()):
        name = type(taken).__name__
        with pytest.raises(blo.StructureError, match=f"`{name}` takes `z0`.*continues your own loop from z"):
            blo.fit(upper, lower, THETA, z0, optimizer=optimizer, steps=2, solver=taken)

    def loop(theta: Tensor, z: Tensor) -> Tensor:
        inner = torch.func.grad(lambda z: quartic(theta, z))
        for _ in range(400):
            z = z - 0.2 * inner(z)
        return z

    given, default = (
        blo.fit(upper, lower, THETA, z0, optimizer=optimizer, steps=3, solver=solver)
        for solver in (blo.External(loop, tol=math.inf), None)
    )
    torch.testing.assert_close(given.theta, default.theta, atol=1e-10, rtol=0)
