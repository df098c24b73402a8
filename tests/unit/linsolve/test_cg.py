"""Conjugate gradients: how many steps, when each lane stops, and that stopping late does no harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from blo.linsolve import CG
from blo.operators import Dense, Hessian
from tests.strategies import System, normal, spd, spd_systems
from tests.unit.linsolve.krylov import Counted


@settings(deadline=None, max_examples=40)
@given(spd_systems(max_power=2))
def test_it_takes_no_more_steps_than_unknowns(system: System) -> None:
    product = Counted(system.matrix)
    found = CG().solve(product, system.b)
    assert (found.iterations <= system.b.shape[-1] + 2).all()
    assert product.calls == int(found.iterations.max()) + 1  # one for the residual


def test_as_many_steps_as_different_eigenvalues() -> None:
    q, _ = torch.linalg.qr(normal(0, 50, 50))
    values = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat(17)[:50]
    found = CG().solve(Dense((q * values) @ q.T, symmetric=True), normal(1, 50))
    assert int(found.iterations) == 3 and found.converged(1e-10)


def test_a_lane_whose_preconditioner_is_infinite_stays_at_zero() -> None:
    matrix, b = spd(0, (2,), 4, 10.0), normal(1, 2, 4)
    inverse = torch.tensor([1.0, torch.inf], dtype=torch.float64)[:, None]
    found = CG(preconditioner=lambda v: inverse * v).solve(Dense(matrix, symmetric=True), b)
    np.testing.assert_allclose(found.x[0], np.linalg.solve(matrix[0], b[0]), rtol=1e-8)
    assert torch.equal(found.x[1], torch.zeros_like(b[1]))
    assert found.residual[1] == 1


def test_a_tolerance_below_rounding_stops_at_rounding() -> None:
    matrix, b = spd(0, (4,), 8, 10.0).float(), normal(1, 4, 8).float()
    operator = Dense(matrix, symmetric=True)
    at_rounding = CG(tol=torch.finfo(b.dtype).eps).solve(operator, b)
    assert torch.equal(CG(tol=0.0).solve(operator, b).iterations, at_rounding.iterations)


def test_an_indefinite_lane_is_not_worse_than_zero() -> None:
    matrix = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    b = torch.tensor([[1.0, 0.5], [0.5, 1.0], [1.0, 0.0], [1.0, 0.1]], dtype=torch.float64)
    found = CG().solve(Dense(matrix, symmetric=True), b)
    assert found.indefinite.tolist() == [True, True, False, True]
    assert found.iterations.tolist() == [1, 0, 1, 1]
    # The first step of lane 0, along b, leaves 1.33 times the residual of zero: (b' A b) / |A b|^2 is the best length.
    torch.testing.assert_close(found.x[0], b[0] * 0.75 / 1.25, rtol=1e-14, atol=0)
    assert not found.x[1].any() and found.residual[1] == 1  # negative curvature at once
    assert torch.equal(found.x[2], b[2])
    torch.testing.assert_close(found.x[3], b[3] * 0.99 / 1.01, rtol=1e-14, atol=0)


def reference(matrix: Any, b: Any, iterations: int) -> list[Any]:
    """Return the iterates of conjugate gradients up to the first direction without positive curvature, in NumPy."""
    x = np.zeros_like(b)
    r, p, iterates = b.copy(), b.copy(), [x]
    for _ in range(iterations):
        q = matrix @ p
        if p @ q <= 0:
            break
        x, r_next = x + (r @ r) / (p @ q) * p, r - (r @ r) / (p @ q) * q
        p, r = r_next + (r_next @ r_next) / (r @ r) * p, r_next
        iterates.append(x)
    return iterates


@pytest.mark.parametrize("lanes", [0, 3])
@pytest.mark.parametrize("iterations", [2, 5, 9])
def test_where_it_is_indefinite_the_best_it_met_is_returned(lanes: int, iterations: int) -> None:
    n, rose = 9, 0
    for seed in range(20):
        matrices = np.stack([spd(seed + i, (), n, 1e3).numpy() for i in range(lanes or 1)])
        _, vectors = np.linalg.eigh(matrices)
        matrices = matrices - 0.02 * vectors[..., :1] * vectors[..., :1].swapaxes(-1, -2)
        b = normal(seed + 7, lanes or 1, n)
        stacked = torch.as_tensor(matrices if lanes else matrices[0])
        found = CG(max_iter=iterations, tol=None).solve(Dense(stacked, symmetric=True), b if lanes else b[0])
        for lane in range(lanes or 1):
            matrix, rhs = matrices[lane], b[lane].numpy()
            iterates = reference(matrix, rhs, iterations)
            left = [np.linalg.norm(rhs - matrix @ x) / np.linalg.norm(rhs) for x in iterates]
            bent, x = len(iterates) <= iterations, found.x[lane] if lanes else found.x
            lost = bent or left[-1] > min(1.0, 100 * min(left))
            rose += lost and left[-1] > 1.01 * min(left)
            expected = iterates[-1]
            if lost:  # the best iterate, or the best multiple of the last one
                image = matrix @ expected
                shortened = (image @ rhs) / (image @ image) * expected if image.any() else expected
                both = [iterates[int(np.argmin(left))], shortened]
                expected = min(both, key=lambda x: float(np.linalg.norm(rhs - matrix @ x)))
            np.testing.assert_allclose(x, expected, rtol=1e-7, atol=1e-9)
            assert bool(found.indefinite.reshape(-1)[lane]) == bent
            assert float(found.residual.reshape(-1)[lane]) <= 1
    assert rose or iterations == 2  # the cases that matter are among these


@pytest.mark.parametrize("iterations", [3, 60])
def test_another_product_measures_a_small_residual_alone(iterations: int) -> None:
    """A residual above 1e-3 of b is that of the recursion, and equal to the true one up to rounding."""
    basis = torch.linalg.qr(normal(0, 50, 50))[0]
    matrix = basis * torch.logspace(0, -3, 50, dtype=torch.float64) @ basis.T
    products = 0

    def product(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return matrix @ v

    b = normal(1, 50)
    found = CG(max_iter=iterations, tol=0.0, damping=0.01).solve(Hessian(product), b)
    truth = torch.linalg.vector_norm(b - matrix @ found.x - 0.01 * found.x) / torch.linalg.vector_norm(b)
    assert products == iterations + (truth < 1e-3)
    assert (truth < 1e-3) == (iterations == 60)
    torch.testing.assert_close(found.residual, truth, rtol=1e-9, atol=1e-15)
