"""Conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import surely
from blo._settings import require_count, require_nonnegative, require_tolerance
from blo.linsolve._base import (
    LinearSolution,
    LinearSolver,
    damped,
    floor_of,
    largest,
    norm,
    relative_residual,
    require_symmetric,
    started,
)
from blo.linsolve._conjugate import Ended, Scalar, alone, dot, lanes
from blo.linsolve._precondition import Preconditioning, inverse_of
from blo.operators import Operator

#: Relative residual above which that of the recursion tells as much as one measured by another product: rounding parts
#: them by far less.
_FAR = 1e-3
#: Cosine between a direction and the image of the last one, zero but for rounding, above which products are so rough
#: (bfloat16 inside the operator) that the recursion tells nothing.
_ROUGH = 1e-4
#: How many times larger than the least residual met the last one may be. Where the operator is positive definite, it
#: rises and falls while the error shrinks in every iteration.
_RISE = 100.0


@dataclass(frozen=True, eq=False)
class CG(LinearSolver):
    """Conjugate gradients for symmetric positive definite operators.

    Each lane has its own step sizes. A lane stops when its residual is below `tol`, or when a direction of non-positive
    curvature turns up, which is reported as `indefinite`. It returns its last iterate, whose error is the least in the
    norm of A. Where the lane is indefinite, or the last residual is larger than that of zero or far larger than one
    before, it returns the iterate with the least residual, or the last one shortened, whichever leaves less: the
    relative residual is never above 1, unless `tol` is 0.

    Source: Hestenes and Stiefel (1952); Shewchuk (1994), sections 8 and 12.

    Attributes:
        max_iter: most applications of the operator, beside one for the guess and one for the last residual, where that
            is small or in doubt.
        tol: relative residual at which a lane stops, measured without the preconditioner; None for `max_iter`
            iterations, as an approximation by choice: a lane stops at rounding alone. 0 likewise, and a lane that is
            not seen to be indefinite returns its last iterate whatever the residual.
        damping: d in `(A + d I) x = b`; nearly singular operators gain from some.
        preconditioner: `v -> M^-1 v` on flat vectors `(*lanes, n)`, an operator or a callable, symmetric positive
            definite; an inverse of the whole Hessian serves on every tangent space. Or a `Nystrom`.

    Raises:
        ValueError: if `tol` or `damping` is negative, or `max_iter` is below 1.
        StructureError: by `solve`, if the operator is not declared symmetric.
    """

    max_iter: int = 100
    tol: float | None = 1e-10
    damping: float = 0.0
    preconditioner: Preconditioning | None = None

    def __post_init__(self) -> None:
        require_tolerance(self.tol, "CG.tol")
        require_nonnegative(self.damping, "CG.damping")
        require_count(self.max_iter, "CG.max_iter", "For no solve, use `Zero`.")

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        require_symmetric(operator, "CG")
        apply = damped(operator, self.damping)
        inverse = inverse_of(self.preconditioner, operator, b)

        # Each lane is solved for a right hand side of size one: squares of tiny or huge b leave the range.
        size, zero = largest(b)
        rhs = b / size
        x, r = started(apply, rhs, x0, size, zero)
        bb = dot(rhs, rhs)
        goal = floor_of(self.tol, b) ** 2 * bb
        given = (apply, inverse, x, r, goal, self.max_iter)
        ended = alone(*given) or lanes(*given)
        textbook = isinstance(self.tol, float) and self.tol == 0  # Newton passes a tensor
        x, residual = _judged(ended, rhs, bb, textbook, lambda x: relative_residual(operator, x, rhs, self.damping))
        iterations = _of_lanes(ended.iterations, rhs, torch.int64)
        indefinite = _of_lanes(ended.indefinite, rhs, torch.bool)
        return LinearSolution(size * x, residual, iterations, indefinite, "CG")


def _judged(
    ended: Ended, rhs: Tensor, bb: Tensor, textbook: bool, measure: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the iterate to hand back and its relative residual, measured where the recursion may have lost it."""
    x, rr, least, indefinite = ended.x, ended.rr, ended.least, ended.indefinite
    numbers = isinstance(rr, float)
    size: Scalar = bb.item() if numbers else bb
    # Where the operator is positive definite, each iterate is the best in its norm, whatever the residual.
    bound = _RISE**2 * least
    if not textbook:
        bound = min(size, bound) if numbers else torch.minimum(size, bound)
    far = ended.running & (rr <= bound) & (rr > _FAR**2 * size)
    if (far and _orthogonal(ended.p, ended.q)) if numbers else surely(far & (_cosine(ended.p, ended.q) <= _ROUGH)):
        return x, _of_lanes((rr / size) ** 0.5, rhs)
    if numbers:
        rr, least, bound = (rhs.new_tensor(number) for number in (rr, least, bound))
    lost = indefinite | (rr > bound)
    if not surely(~lost):
        # Of all multiples of x, this one leaves the least residual.
        image = rhs - ended.r
        length = dot(image, image)
        share = dot(rhs, image) / torch.where(length > 0, length, 1.0)
        shortened = bb - share * share * length < least
        x = torch.where(lost, torch.where(shortened, share * x, ended.best()), x)
    residual = measure(x)
    # There the recursion has lost touch with the true residual.
    worse = (residual > 1) & _of_lanes((lost | (rr <= bb)) & (bb > 0), rhs)
    return torch.where(worse.unsqueeze(-1), 0.0, x), torch.where(worse, 1.0, residual)


def _of_lanes(scalar: Scalar, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a scalar of each lane as a tensor of shape `lanes`, a number where `like` is."""
    if not isinstance(scalar, Tensor):
        return like.new_full((), scalar, dtype=dtype)
    return scalar.squeeze(-1) if scalar.dim() else scalar


def _orthogonal(p: Tensor, q: Tensor) -> bool:
    """Tell whether one vector's directions are as `_cosine` has them, where no square leaves the range."""
    pq, pp, qq = (torch.dot(a, b).item() for a, b in ((p, q), (p, p), (q, q)))
    return abs(pq) <= _ROUGH * math.sqrt(pp * qq) < math.inf


def _cosine(p: Tensor, q: Tensor) -> Tensor:
    """Return how far each lane's directions are from conjugate: zero but for rounding."""
    return dot(p, q).abs() / (norm(p) * norm(q))
