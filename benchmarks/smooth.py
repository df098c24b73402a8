"""Smooth unconstrained bilevel problems with answers from dense linear algebra in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from benchmarks.registry import Setting

#: `(ops, data, theta, z) -> scalar`, with `ops` torch or jax.numpy, so that every library gets the same formula.
Formula: TypeAlias = Callable[[Any, Sequence[Any], Any, Any], Any]


@dataclass(frozen=True, eq=False)
class Smooth:
    """The problem `minimise upper(theta, z) where z minimises lower(theta, z)`, at one theta and its solution z.

    Attributes:
        lower: formula of the lower objective.
        upper: formula of the upper objective.
        data: the tensors that both formulas get.
        theta: upper variable, one vector.
        z: the solution of the lower problem at theta, shape `(n,)`.
        exact: the hypergradient there.
        curvature: the largest eigenvalue of the lower Hessian, for the libraries that need a step size.
    """

    lower: Formula
    upper: Formula
    data: tuple[Tensor, ...]
    theta: Tensor
    z: Tensor
    exact: Tensor
    curvature: float

    def inner(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the lower objective."""
        value: Tensor = self.lower(torch, self.data, theta, z)
        return value

    def outer(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return the upper objective."""
        value: Tensor = self.upper(torch, self.data, theta, z)
        return value


def ridge(setting: Setting, rows: int = 2000, columns: int = 500) -> Smooth:
    """Return ridge regression with a penalty for each coordinate; its columns are scaled so that CG is slow."""
    generator = setting.generator()

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scale = torch.logspace(0, -1.3, columns, dtype=torch.float64)
    x, held_x, truth = draw(rows, columns) * scale, draw(rows // 4, columns) * scale, draw(columns)
    y, held_y = x @ truth + 0.1 * draw(rows), held_x @ truth + 0.1 * draw(rows // 4)
    theta = -8.0 + 0.5 * draw(columns)

    penalty = np.exp(theta.numpy())
    hessian = x.numpy().T @ x.numpy() / rows + np.diag(penalty)
    z = np.linalg.solve(hessian, x.numpy().T @ y.numpy() / rows)
    v = held_x.numpy().T @ (held_x.numpy() @ z - held_y.numpy()) / len(held_y)
    exact = -penalty * z * np.linalg.solve(hessian, v)
    largest = float(np.linalg.eigvalsh(hessian)[-1])

    def lower(ops: Any, data: Sequence[Any], theta: Any, z: Any) -> Any:
        x, y, _, _ = data
        return 0.5 * ((x @ z - y) ** 2).mean() + 0.5 * (ops.exp(theta) * z * z).sum()

    def upper(ops: Any, data: Sequence[Any], theta: Any, z: Any) -> Any:
        _, _, x, y = data
        return 0.5 * ((x @ z - y) ** 2).mean()

    return _on(setting, lower, upper, (x, y, held_x, held_y), theta, z, exact, largest)


def quadratic(setting: Setting, condition: float, size: int = 200, *, distance: float = 1.0) -> Smooth:
    """Return `lower = z'Az/2 - theta'z`, `upper = |z - target|^2/2` with eigenvalues of A from 1 down to 1/condition.

    Args:
        setting: settings of the run.
        condition: condition number of A.
        size: number of unknowns.
        distance: norm of the upper gradient `z - target`; if it is zero, so is the hypergradient.
    """
    generator = setting.generator()
    basis = np.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64).numpy())[0]
    matrix = basis * np.logspace(0, -np.log10(condition), size) @ basis.T
    theta = torch.randn(size, generator=generator, dtype=torch.float64)
    v = distance * torch.randn(size, generator=generator, dtype=torch.float64).numpy()
    # The solution and the target are rounded to the run's precision first: the answer is exact for the rounded data.
    z = torch.from_numpy(np.linalg.solve(matrix, theta.numpy())).to(setting.dtype).double()
    target = torch.from_numpy(z.numpy() - v).to(setting.dtype).double()
    exact = np.linalg.solve(matrix, (z - target).numpy())

    def lower(ops: Any, data: Sequence[Any], theta: Any, z: Any) -> Any:
        return 0.5 * (z @ (data[0] @ z)) - (theta * z).sum()

    def upper(ops: Any, data: Sequence[Any], theta: Any, z: Any) -> Any:
        return 0.5 * ((z - data[1]) ** 2).sum()

    return _on(setting, lower, upper, (torch.from_numpy(matrix), target), theta, z.numpy(), exact, 1.0)


def _on(
    setting: Setting,
    lower: Formula,
    upper: Formula,
    data: Sequence[Tensor],
    theta: Tensor,
    z: np.ndarray[Any, Any],
    exact: np.ndarray[Any, Any],
    curvature: float,
) -> Smooth:
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(setting.device, setting.dtype)

    moved = tuple(move(tensor) for tensor in data)
    return Smooth(lower, upper, moved, move(theta), move(torch.from_numpy(z)), torch.from_numpy(exact), curvature)
