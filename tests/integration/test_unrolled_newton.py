"""Steps of Newton and Levenberg-Marquardt unrolled where torch's derivatives are NaN: singular systems, zero gradients.

The truth is central differences of what the solver returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from tests.strategies import normal

ROWS, OTHER = normal(2, 2, 3)
THETA = torch.tensor([1.0, 0.7, 0.5], dtype=torch.float64)
TWICE = ("auto", "cg")
LINEAR = {"auto": blo.Auto(), "cg": blo.CG(), "minres": blo.MINRES(), "gmres": blo.GMRES()}


def singular(theta: Tensor, z: Tensor) -> Tensor:
    """An objective in three unknowns whose Hessian has rank 2 and a null space that moves with theta."""
    rest = (ROWS + 0.3 * theta[2] * OTHER) @ z - theta[:2]
    return rest.square().sum() + rest.pow(4).sum()


def bowl(theta: Tensor, z: Tensor) -> Tensor:
    """An objective that a Newton step minimises exactly."""
    return (theta.exp() * (z - theta).square()).sum()


def derivatives(
    lower: blo.LowerProblem, solver: blo.solvers.Solver, *, twice: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradient and Hessian of a function of the solution, each followed by its central differences."""

    def outer(theta: Tensor) -> Tensor:
        z = blo.argmin(lower, theta, torch.zeros_like(theta), solver=solver, gradient=blo.Unrolled())
        return (z * torch.arange(1.0, 4.0)).square().sum()

    def gradient(theta: Tensor, graph: bool = False) -> Tensor:
        theta = theta if graph else theta.detach().requires_grad_()
        (found,) = torch.autograd.grad(outer(theta), theta, create_graph=graph)
        return found

    def differences(function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return central differences of fourth order."""
        near, far = (
            torch.stack([(function(THETA + e) - function(THETA - e)) / (2 * h) for e in h * torch.eye(3).double()])
            for h in (1e-3, 2e-3)
        )
        return (4 * near - far) / 3

    theta = THETA.clone().requires_grad_()
    with torch.no_grad():
        truth = differences(outer)
    if not twice:
        return gradient(theta), truth, theta, theta
    first = gradient(theta, graph=True)
    second = torch.stack([torch.autograd.grad(entry, theta, retain_graph=True)[0] for entry in first])
    return first.detach(), truth, second, differences(gradient)


@pytest.mark.parametrize("name", LINEAR)
def test_a_singular_hessian_has_the_derivative_of_the_step_that_was_made(name: str) -> None:
    solver = blo.Newton(4, tol=None, linear_solver=LINEAR[name], forcing=0.0)
    first, truth, second, differences = derivatives(blo.LowerProblem(singular), solver, twice=name in TWICE)
    torch.testing.assert_close(first, truth, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(second, differences, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", TWICE)
def test_steps_from_a_zero_gradient_have_a_second_derivative(name: str) -> None:
    least = blo.LowerProblem.least_squares(lambda theta, z: theta.exp() * (z - theta))
    newton = blo.Newton(5, tol=None, linear_solver=LINEAR[name], forcing=0.0)
    marquardt = blo.LevenbergMarquardt(12, tol=None, linear_solver=LINEAR[name], damping=1e-8)
    cases: list[tuple[blo.LowerProblem, Any]] = [(blo.LowerProblem(bowl), newton), (least, marquardt)]
    for lower, solver in cases:
        first, truth, second, _ = derivatives(lower, solver, twice=True)
        torch.testing.assert_close(first, truth, rtol=1e-8, atol=1e-8)
        weights = torch.arange(1.0, 4.0, dtype=torch.float64).square()
        torch.testing.assert_close(second, torch.diag(2 * weights), rtol=1e-8, atol=1e-8)  # z* = theta


def test_an_objective_without_curvature_has_a_derivative() -> None:
    """The system with a zero matrix has no solution, and the step that replaces it does not use one."""
    theta = THETA.clone().requires_grad_()
    lower = blo.LowerProblem(lambda theta, z: theta @ z, blo.Box(-0.1, 0.1))
    z = blo.argmin(lower, theta, torch.zeros_like(theta), solver=blo.Newton(4, tol=None), gradient=blo.Unrolled())
    assert torch.equal(z, torch.full_like(z, -0.1))
    assert torch.equal(torch.autograd.grad(z.sum(), theta)[0], torch.zeros_like(theta))
