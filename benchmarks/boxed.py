"""Batches of quadratic problems in boxes, with answers from dense linear algebra in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.registry import Setting


@dataclass(frozen=True, eq=False)
class Boxed:
    """In each lane: `minimise |z - target|^2/2 where z minimises z'Az/2 - <theta c, z> within [-1, 1]`.

    Attributes:
        matrix: A, shape `(batch, n, n)`.
        scale: c, shape `(batch, n)`.
        target: shape `(batch, n)`.
        theta: shared by the lanes, shape `(n,)`.
        z: the solutions, shape `(batch, n)`; about a third of the coordinates are at a bound.
        exact: the hypergradient of the sum of the upper values, shape `(n,)`.
    """

    matrix: Tensor
    scale: Tensor
    target: Tensor
    theta: Tensor
    z: Tensor
    exact: Tensor

    def inner(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the lower objective of each lane."""
        return (z * (0.5 * (self.matrix @ z.unsqueeze(-1)).squeeze(-1) - theta * self.scale)).sum(-1)

    def outer(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the sum of the upper objectives."""
        return 0.5 * (z - self.target).square().sum()


def boxed(setting: Setting, batch: int = 128, size: int = 64, condition: float = 30.0) -> Boxed:
    """Return a batch of problems in which A has this condition number.

    Raises:
        RuntimeError: if an active set is not found; for the sizes used here, all are found.
    """
    generator = setting.generator()

    def draw(*shape: int) -> np.ndarray:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).numpy()

    basis = np.linalg.qr(draw(batch, size, size))[0]
    matrix = basis * np.logspace(0, -np.log10(condition), size) @ basis.swapaxes(-1, -2)
    theta, scale, target = 1 + 0.1 * draw(size), 0.3 * draw(batch, size), draw(batch, size)
    z = np.stack([_solve(a, theta * c) for a, c in zip(matrix, scale, strict=True)])
    free = np.abs(z) < 1
    exact = np.zeros(size)
    for a, c, v, inside in zip(matrix, scale, z - target, free, strict=True):
        exact[inside] += c[inside] * np.linalg.solve(a[np.ix_(inside, inside)], v[inside])

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(setting.device, setting.dtype)

    return Boxed(move(matrix), move(scale), move(target), move(theta), move(z), torch.from_numpy(exact))


def _solve(matrix: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Minimise `z'Az/2 - b'z` in [-1, 1]: gradient projection finds the active set, a dense solve the other entries."""
    z = np.zeros_like(b)
    for _ in range(100):
        for _ in range(200):
            z = np.clip(z - (matrix @ z - b), -1, 1)
        inside = np.abs(z) < 1
        fixed = np.where(inside, 0.0, z)
        z[inside] = np.linalg.solve(matrix[np.ix_(inside, inside)], (b - matrix @ fixed)[inside])
        if np.abs(z - np.clip(z - (matrix @ z - b), -1, 1)).max() <= 1e-13:
            return z
    raise RuntimeError("the active set of a box problem was not found")
