"""Conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blo.errors import StructureError
from blo.linsolve._base import (
    LinearSolution,
    LinearSolver,
    all_true,
    largest,
    relative_residual,
    require_nonnegative,
)
from blo.operators import Operator

#: Iterations between two looks at the convergence flags where a look stalls the device's queue.
_STRIDE = 8


@dataclass(frozen=True, eq=False)
class CG(LinearSolver):
    """Conjugate gradients for symmetric positive definite operators.

    Each lane has its own step sizes. A lane stops, keeping its last iterate, when its residual is below
    `tol`, or when a direction of non-positive curvature turns up, which is reported as `indefinite`.

    Source: Hestenes and Stiefel (1952); Shewchuk (1994), section 8.

    Attributes:
        max_iter: most applications of the operator, beside one for the guess and one for the last residual.
        tol: relative residual at which a lane stops.
        damping: d in `(A + d I) x = b`; nearly singular operators gain from some.
    """

    max_iter: int = 100
    tol: float = 1e-10
    damping: float = 0.0

    def __post_init__(self) -> None:
        require_nonnegative(self.tol, "CG.tol")
        require_nonnegative(self.damping, "CG.damping")
        if self.max_iter < 1:
            raise ValueError(f"`CG.max_iter` must be at least 1, but is {self.max_iter}. For no solve, use `Zero`.")

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        if not operator.symmetric:
            raise StructureError(
                f"`CG` needs a symmetric operator, but {type(operator).__name__} is not declared symmetric. "
                "Declare it (`Dense(matrix, symmetric=True)`) or use `Direct`."
            )

        def apply(v: Tensor) -> Tensor:
            return operator(v) + self.damping * v

        # Each lane is solved for a right hand side of size one: squares of tiny or huge b leave the range.
        size, zero = largest(b)
        rhs = b / size
        x = torch.zeros_like(b) if x0 is None else torch.where(zero, 0.0, x0 / size)
        r = rhs if x0 is None else rhs - apply(x)
        goal = max(self.tol, torch.finfo(b.dtype).eps) ** 2 * _dot(rhs, rhs)
        p, rr = r, _dot(r, r)
        running = ~zero & (rr > goal)
        iterations = torch.zeros_like(running, dtype=torch.int64)
        indefinite = torch.zeros_like(running)
        stride = 1 if b.device.type == "cpu" else _STRIDE
        for index in range(self.max_iter):
            if index % stride == 0 and all_true(~running):
                break
            q = apply(p)
            bend = _dot(p, q)
            indefinite = indefinite | (running & (bend <= 0))
            running = running & (bend > 0)
            step = rr / torch.where(running, bend, 1.0)
            x = torch.where(running, x + step * p, x)
            r = torch.where(running, r - step * q, r)
            rr_next = _dot(r, r)
            p = torch.where(running, r + rr_next / torch.where(running, rr, 1.0) * p, p)
            iterations = iterations + running
            rr = rr_next
            running = running & (rr > goal)
        residual = relative_residual(operator, x, rhs, self.damping)
        return LinearSolution(size * x, residual, iterations.squeeze(-1), indefinite.squeeze(-1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
