"""Truth for Krylov methods: the best element of a Krylov space, by dense NumPy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blo.operators import Operator

Array = NDArray[np.float64]


class Counted(Operator):
    """A matrix that counts its products."""

    symmetric, positive = True, False

    def __init__(self, matrix: Tensor, symmetric: bool = True) -> None:
        self.matrix, self.symmetric, self.calls = matrix, symmetric, 0

    def __call__(self, v: Tensor) -> Tensor:
        self.calls += 1
        return (self.matrix @ v[..., None])[..., 0]


def space(matrix: Array, start: Array, steps: int, inverse: Array | None = None) -> Array:
    """Return an orthonormal basis of `M^-1 r, (M^-1 A) M^-1 r, ...`, `steps` columns."""
    inverse = np.eye(len(start)) if inverse is None else inverse
    columns = [inverse @ start]
    for _ in range(steps - 1):
        columns.append(inverse @ matrix @ columns[-1])
        # Orthogonal columns span the same space, and stay independent.
        basis, _ = np.linalg.qr(np.stack(columns, -1))
        columns = list(basis.T)
    return np.linalg.qr(np.stack(columns, -1))[0]


def least_residual(
    matrix: Array, b: Array, steps: int, inverse: Array | None = None, metric: Array | None = None
) -> Array:
    """Return the x in the Krylov space that minimises `|b - A x|`, or `(b - A x)' metric (b - A x)`."""
    basis = space(matrix, b, steps, inverse)
    root = np.eye(len(b)) if metric is None else np.linalg.cholesky(metric).T
    return basis @ np.linalg.lstsq(root @ matrix @ basis, root @ b, rcond=None)[0]


def least_error(matrix: Array, b: Array, steps: int, inverse: Array | None = None) -> Array:
    """Return the x in the Krylov space with the least `(x - x*)' A (x - x*)`."""
    basis = space(matrix, b, steps, inverse)
    return basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ b)


def symmetric(seed: int, n: int, *, negative: int = 0, condition: float = 10.0) -> Array:
    """Return a matrix with eigenvalues of size 1/condition to 1, the given number of them negative."""
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(n, n)))
    values = np.logspace(0, -np.log10(condition), n)
    values[rng.permutation(n)[:negative]] *= -1
    return (vectors * values) @ vectors.T


def tensor(array: Array) -> Tensor:
    """Return the numbers in double precision."""
    return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float64)
