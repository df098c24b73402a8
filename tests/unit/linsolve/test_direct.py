"""Factorisation: the cases Cholesky does not take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blo.linsolve import Direct
from blo.operators import Dense
from tests.strategies import normal, spd


def test_an_indefinite_system_is_solved_all_the_same() -> None:
    matrix, b = spd(0, (3,), 4, 10.0), normal(1, 3, 4)
    matrix[1] *= -1.0
    found = Direct().solve(Dense(matrix, symmetric=True), b)
    assert found.indefinite.tolist() == [False, True, False]
    torch.testing.assert_close(found.x, torch.linalg.solve(matrix, b), rtol=1e-12, atol=1e-12)
    assert found.converged(1e-12).all()


def test_a_matrix_that_is_not_symmetric_is_not_called_indefinite() -> None:
    matrix, b = normal(0, 3, 4, 4), normal(1, 3, 4)
    found = Direct().solve(Dense(matrix), b)
    torch.testing.assert_close(found.x, torch.linalg.solve(matrix, b), rtol=1e-11, atol=1e-11)
    assert not found.indefinite.any()


def test_damping_can_make_it_definite() -> None:
    found = Direct(damping=2.0).solve(Dense(-torch.eye(3), symmetric=True), torch.ones(3))
    assert not found.indefinite and torch.equal(found.x, torch.ones(3))


def flat(seed: int, n: int, rank: int, *, definite: bool = True) -> torch.Tensor:
    """Return a symmetric matrix of this rank, its eigenvalues from 0.5 to 2 or, half of them, negative."""
    vectors, _ = torch.linalg.qr(normal(seed, n, n))
    values = torch.cat([torch.linspace(0.5, 2.0, rank).double(), torch.zeros(n - rank).double()])
    if not definite:
        values[: rank // 2] *= -1
    return vectors * values @ vectors.mT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_singular_system_that_has_solutions_is_solved(dtype: torch.dtype, symmetric: bool) -> None:
    matrix = torch.stack([flat(seed, 7, 4) for seed in range(3)])
    matrix[1, 2], matrix[1, :, 2] = 0.0, 0.0  # an unknown that is not used
    matrix[2] = spd(5, (), 7, 10.0)  # a lane that is not singular
    if not symmetric:
        matrix = matrix @ torch.linalg.qr(normal(9, 7, 7))[0]
    b = (matrix @ normal(1, 3, 7, 1)).squeeze(-1)
    found = Direct().solve(Dense(matrix.to(dtype), symmetric=symmetric), b.to(dtype))
    assert found.converged(Direct().tol).all() and not found.indefinite.any()
    np.testing.assert_allclose(
        matrix @ found.x[..., None].double(), b[..., None], rtol=0, atol=1e4 * torch.finfo(dtype).eps
    )
    if symmetric:  # no share of the flat directions beyond what scaling turns
        least = np.einsum("lij,lj->li", np.linalg.pinv(matrix.numpy(), rcond=1e-10), b.numpy())
        assert (np.linalg.norm(found.x, axis=-1) <= 3 * np.linalg.norm(least, axis=-1)).all()


def test_a_singular_system_without_a_solution_leaves_a_residual() -> None:
    matrix, b = flat(0, 6, 3), normal(1, 6)
    found = Direct().solve(Dense(matrix, symmetric=True), b)
    outside = b.numpy() - matrix.numpy() @ np.linalg.lstsq(matrix.numpy(), b.numpy(), rcond=1e-10)[0]
    assert float(found.residual) >= 0.99 * np.linalg.norm(outside) / np.linalg.norm(b.numpy()) > 0.1
    assert found.x.isfinite().all() and not found.converged(Direct().tol)


def test_a_singular_matrix_with_a_negative_eigenvalue_is_indefinite() -> None:
    matrix = flat(0, 6, 4, definite=False)
    b = matrix @ normal(1, 6)
    found = Direct().solve(Dense(matrix, symmetric=True), b)
    assert found.indefinite and found.converged(1e-12)


def test_little_curvature_in_another_unit_is_no_flat_direction() -> None:
    units = torch.tensor([1e9, 1.0, 1e-9, 0.0]).double()
    matrix, b = torch.diag(units), units * torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    found = Direct().solve(Dense(matrix, symmetric=True), b)
    torch.testing.assert_close(found.x, torch.tensor([1.0, 2.0, 3.0, 0.0]).double(), rtol=1e-12, atol=0)


def test_a_matrix_that_is_not_finite_gives_no_number() -> None:
    matrix = torch.stack([spd(0, (), 3, 10.0), torch.full((3, 3), torch.nan).double(), torch.zeros(3, 3).double()])
    found = Direct().solve(Dense(matrix, symmetric=True), torch.ones(3, 3).double())
    assert found.x[0].isfinite().all() and found.x[1].isnan().all()
    assert found.converged(1e-8).tolist() == [True, False, False]
