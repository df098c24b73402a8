"""Linear solvers with an inner product of the caller's, against dense algebra in NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from blo.linsolve import CG, GMRES, MINRES, Auto, Neumann
from blo.linsolve._space import Space
from blo.operators import Dense
from tests.unit.linsolve.krylov import Array, least_error, least_residual, symmetric, tensor

N = 6
KRYLOV: list[Callable[..., Any]] = [CG, MINRES, GMRES]


def weighted(metric: Array) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `(a, b) -> a' metric b`."""
    return lambda a, b: (a * (tensor(metric) @ b.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True)


def pair(seed: int, *, negative: int = 0) -> tuple[Array, Array]:
    """Return a metric M and a matrix A that is symmetric in its inner product: `M A` is symmetric."""
    metric = symmetric(seed, N)
    return metric, np.linalg.solve(metric, symmetric(seed + 1, N, negative=negative))


@pytest.mark.parametrize("make", KRYLOV)
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_every_iterate_is_the_best_of_its_krylov_space_in_that_inner_product(
    make: Callable[..., Any], steps: int
) -> None:
    """With the root R of M, the coordinates R x turn it into the Euclidean one, and A into `R A R^-1`."""
    metric, matrix = pair(3)
    root = scipy.linalg.sqrtm(metric).real
    b = np.random.default_rng(5).normal(size=N)
    plain = root @ matrix @ np.linalg.inv(root)
    best = least_error if make is CG else least_residual
    expected = np.linalg.solve(root, best(0.5 * (plain + plain.T), root @ b, steps))
    solver = make(max_iter=steps, tol=0.0, inner=weighted(metric))
    found = solver.solve(Dense(tensor(matrix), symmetric=True), tensor(b))
    np.testing.assert_allclose(found.x, expected, rtol=1e-8, atol=1e-9)
    left = root @ (b - matrix @ expected)
    np.testing.assert_allclose(found.residual, np.linalg.norm(left) / np.linalg.norm(root @ b), rtol=1e-8, atol=1e-12)


SOLVERS: dict[str, Any] = {
    "CG": (CG, {}),
    "MINRES": (MINRES, {}),
    "GMRES": (GMRES, {}),
    "Neumann": (Neumann, {"terms": 20_000, "tol": 1e-12}),
    "Auto": (Auto, {}),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200])
def test_the_solution_is_that_of_the_dense_system_whatever_its_size(name: str, size: float) -> None:
    """Squares of 1e-200 underflow to zero and those of 1e200 overflow."""
    metric, matrix = pair(7)
    make, options = SOLVERS[name]
    b = np.random.default_rng(8).normal(size=(3, N))
    b[1] = 0.0
    found = make(**options, inner=weighted(metric)).solve(Dense(tensor(matrix), symmetric=True), tensor(size * b))
    expected = np.linalg.solve(matrix, b.T).T
    np.testing.assert_allclose(found.x / size, expected, rtol=1e-8, atol=1e-8)
    assert not found.x[1].any() and bool((found.residual < 1e-9).all())
    assert "Direct" not in found.method


def test_an_indefinite_system_is_recognised_in_that_inner_product() -> None:
    metric, matrix = pair(11, negative=2)
    b = np.random.default_rng(12).normal(size=N)
    for solver in (MINRES(inner=weighted(metric)), Auto(inner=weighted(metric))):
        found = solver.solve(Dense(tensor(matrix), symmetric=True), tensor(b))
        np.testing.assert_allclose(found.x, np.linalg.solve(matrix, b), rtol=1e-7, atol=1e-8)
        assert bool(found.indefinite)


def test_an_inner_product_may_differ_between_lanes() -> None:
    """GMRES passes its basis with one more leading axis."""
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3.0, 1.0, 2.0, 0.5, 0.1, 1.0]], dtype=torch.float64)
    matrix, b = symmetric(13, N) + 0.2 * np.triu(np.ones((N, N)), 1), np.random.default_rng(14).normal(size=(2, N))
    found = GMRES(max_iter=3, tol=0.0, inner=lambda a, c: (a * weights * c).sum(-1, keepdim=True)).solve(
        Dense(tensor(matrix)), tensor(b)
    )
    for lane in range(2):
        expected = least_residual(matrix, b[lane], 3, metric=np.diag(weights[lane].numpy()))
        np.testing.assert_allclose(found.x[lane], expected, rtol=1e-8, atol=1e-9)


def test_a_guess_is_compared_with_zero_in_that_norm() -> None:
    """A guess that is better than zero only in the Euclidean norm is dropped."""
    weights = torch.tensor([1.0, 1e6], dtype=torch.float64)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * weights * b).sum(-1, keepdim=True)

    identity, b = Dense(torch.eye(2, dtype=torch.float64), symmetric=True), torch.tensor([1.0, 0.0]).double()
    guess = torch.tensor([1.0, 0.5]).double()
    found, plain = (CG(max_iter=1, tol=1e-6, inner=given).solve(identity, b, guess) for given in (inner, None))
    assert torch.allclose(found.x, b, atol=1e-12) and torch.allclose(plain.x, b, atol=1e-12)
    kept = CG(max_iter=1, tol=2.0, inner=inner).solve(identity, b, guess).x
    assert torch.equal(kept, torch.zeros(2).double()) and torch.equal(
        CG(max_iter=1, tol=2.0).solve(identity, b, guess).x, guess
    )


def test_norms_and_sizes_of_the_euclidean_space() -> None:
    v = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=torch.float64)
    assert Space().norm(v).tolist() == [[5.0], [0.0]]
    size, zero = Space().size(v)
    assert (size.tolist(), zero.tolist()) == ([[4.0], [1.0]], [[False], [True]])
    size, zero = Space(lambda a, b: (a * b).sum(-1, keepdim=True)).size(v)
    assert (size.tolist(), zero.tolist()) == ([[5.0], [1.0]], [[False], [True]])
