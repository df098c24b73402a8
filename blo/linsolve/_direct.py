"""Factorisation of the assembled matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo._precision import require_single
from blo._settings import require_nonnegative
from blo.linsolve._base import LinearSolution, LinearSolver, relative_residual, within
from blo.linsolve._bordered import bordered
from blo.linsolve._singular import followed, least_norm, singular_below
from blo.linsolve._space import EUCLIDEAN
from blo.operators import Operator, Restricted

#: Relative residual above which the bordered system is tried as well, whose matrix is not projected.
_CLOSE = 1e-10


@dataclass(frozen=True, eq=False)
class Direct(LinearSolver):
    """Cholesky where the matrix is positive definite, LU elsewhere, a spectral decomposition where it is singular.

    The matrix of each lane is assembled by n products with the operator and takes n^2 numbers. Use it for small n, and
    as a reference for iterative solvers.

    A singular system may have solutions: an unknown that the objective does not use leaves a zero row. Then the
    solution of least norm is returned, where each unknown is measured in a unit that gives the rows equal size. Without
    a guess and a preconditioner, CG and MINRES return that of least Euclidean norm. If there is no solution, the
    residual shows it.

    Attributes:
        damping: d in `(A + d I) x = b`.

    Raises:
        ValueError: if `damping` is negative.
        StructureError: by `solve`, for half precision.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        require_nonnegative(self.damping, "Direct.damping")

    @property
    def tol(self) -> float:
        return 1e-8

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        require_single(b.dtype, "Direct", "CG")
        identity = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        matrix = operator.dense(b) + self.damping * identity
        definite = indefinite = torch.zeros(b.shape[:-1], dtype=torch.bool, device=b.device)
        size, zero = EUCLIDEAN.size(b)
        rhs = b / size
        follow = followed(matrix, rhs)
        x = torch.zeros_like(b)
        if operator.symmetric:
            factor, info = torch.linalg.cholesky_ex(matrix)
            # A pivot within rounding of zero means a singular matrix. Relative to the diagonal, this does not depend on
            # the units of the unknowns.
            pivots = factor.detach().diagonal(dim1=-2, dim2=-1).square()
            steep = pivots > singular_below(matrix) * matrix.detach().diagonal(dim1=-2, dim2=-1)
            definite = (info == 0) & steep.all(-1)
            x = torch.cholesky_solve(rhs.unsqueeze(-1), factor).squeeze(-1)
        if not all_true(definite):
            if follow:
                # The derivative of a factorisation that fails is NaN or an error, even if its result is not used.
                sound = torch.where(definite[..., None, None], matrix, identity)
                x = torch.linalg.solve(sound, rhs.unsqueeze(-1)).squeeze(-1)
                x = torch.where(definite.unsqueeze(-1), x, 0.0)
            else:
                by_lu, _ = torch.linalg.solve_ex(matrix, rhs.unsqueeze(-1))
                x = torch.where(definite.unsqueeze(-1), x, by_lu.squeeze(-1))
        x = within(operator, torch.where(zero, 0.0, x))
        residual = relative_residual(operator, x, rhs, self.damping)
        limit = max(self.tol, 100 * torch.finfo(b.dtype).eps)
        good = residual <= limit
        if not all_true(good & definite if operator.symmetric else good):
            least, negative = least_norm(matrix, rhs, symmetric=operator.symmetric)
            least = within(operator, torch.where(zero, 0.0, least))
            left = relative_residual(operator, least, rhs, self.damping)
            # The factors of a matrix that is singular up to rounding leave a small residual, but an arbitrary component
            # of x in the null space.
            flat = ~definite & ~negative if operator.symmetric else ~good
            taken = (flat & (left <= limit)) | ~(residual <= left)
            x = torch.where(taken.unsqueeze(-1), least, x)
            residual = torch.where(taken, left, residual)
            indefinite = ~definite & negative if operator.symmetric else indefinite
        # Where the matrix is not positive definite, the larger `limit` applies: the bordered factors of a singular
        # system may fit b better, but with a component in the null space.
        sought = residual > torch.where(definite, max(_CLOSE, 100 * torch.finfo(b.dtype).eps), limit)
        # Without an active constraint there is no border: the other factors would only fit noisy products differently.
        if not follow and isinstance(operator, Restricted) and operator.tangent.project(rhs) is not rhs:
            wanted = sought & ~indefinite
            if not all_true(~wanted):
                beside, left = bordered(operator, rhs, self.damping)
                taken = wanted & (left < residual)
                x, residual = torch.where(taken.unsqueeze(-1), beside, x), torch.where(taken, left, residual)
        return LinearSolution(
            x=size * x,
            residual=residual,
            iterations=(~zero).long().squeeze(-1),
            indefinite=indefinite,
            method="Direct",
        )
