"""What a user gets who chooses nothing: right answers whatever the unit of the objective and its condition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo

N = 24


def quadratic(condition: float, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(N, N)))[0]
    hessian = scale * (basis * np.logspace(0, -np.log10(condition), N)) @ basis.T
    return (hessian + hessian.T) / 2, scale * rng.normal(size=(N, 3)), rng.normal(size=N)


def hypergradient(condition: float, scale: float, **options: Any) -> np.ndarray:
    hessian, cross, v = (torch.as_tensor(part) for part in quadratic(condition, scale))
    lower = blo.LowerProblem(lambda theta, z: 0.5 * z @ hessian @ z - z @ (cross @ theta.exp()), **options)
    theta, z0 = torch.tensor([0.3, -0.2, 0.1]).double(), torch.zeros(N).double()
    # Healthy problems are not warned of: a warning would be an error.
    out = blo.value_and_hypergrad(lambda theta, z: v @ z + 0.5 * z @ z, lower, theta, z0)
    grad: Tensor = out.grad
    return grad.numpy()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5])
def test_quadratics(condition: float, scale: float) -> None:
    hessian, cross, v = quadratic(condition, scale)
    weights = np.exp([0.3, -0.2, 0.1])
    z = np.linalg.solve(hessian, cross @ weights)
    truth = weights * (cross.T @ np.linalg.solve(hessian, v + z))
    found = hypergradient(condition, scale)
    assert np.abs(found - truth).max() <= 1e-6 * np.abs(truth).max()


@pytest.mark.parametrize(
    "options",
    [
        {"constraint": blo.Box(-0.5, 0.5)},
        {"constraint": blo.L2Ball(1.0)},
        {"constraint": blo.Simplex(1.0)},
        {"constraint": blo.Affine(torch.ones(1, N).double(), torch.ones(1).double())},
    ],
    ids=str,
)
def test_constrained_problems_do_not_depend_on_the_unit_of_the_objective(options: dict[str, Any]) -> None:
    truth = hypergradient(30.0, 1.0, **options)
    assert np.abs(truth).max() > 1e-3
    for scale in (1e-6, 1e-3, 1e3):
        assert np.abs(hypergradient(30.0, scale, **options) - truth).max() <= 1e-8 * np.abs(truth).max()


def test_penalized_problems_do_not_depend_on_the_unit_of_the_objective() -> None:
    truth = hypergradient(30.0, 1.0, penalty=blo.L1(0.3))
    for scale in (1e-6, 1e3):
        found = hypergradient(30.0, scale, penalty=blo.L1(0.3 * scale))
        assert np.abs(found - truth).max() <= 1e-8 * np.abs(truth).max()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    "linear_solver", [blo.Auto(), blo.Auto(direct=0), blo.MINRES(), blo.GMRES(), blo.Neumann()], ids=str
)
def test_a_solution_without_a_free_direction_moves_with_its_set(
    linear_solver: blo.linsolve.LinearSolver, scale: float
) -> None:
    """What rounding leaves of the upper gradient is not a right-hand side."""
    rng = np.random.default_rng(1)
    A, b = torch.as_tensor(rng.normal(size=(5, 5))), torch.as_tensor(rng.normal(size=5))
    lower = blo.LowerProblem(lambda theta, z: scale * (z - theta).cosh().sum(), lambda theta: blo.Affine(A, theta * b))
    theta, z0 = torch.full((5,), 0.3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    gradient = blo.Implicit(linear_solver)
    out = blo.value_and_hypergrad(lambda theta, z: z.square().sum(), lower, theta, z0, gradient=gradient)
    inverse = np.linalg.inv(A.numpy())
    truth = 2 * b.numpy() * (inverse.T @ inverse @ (0.3 * b.numpy()))
    np.testing.assert_allclose(out.grad, truth, rtol=1e-9, atol=1e-9)
