"""Conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._autodiff import all_true_on_cpu
from blo._settings import require_count, require_nonnegative, require_tolerance
from blo.linsolve._base import (
    LinearSolution,
    LinearSolver,
    damped,
    floor_of,
    raised,
    relative_residual,
    require_symmetric,
    started,
)
from blo.linsolve._conjugate import Ended, Scalar, alone, euclidean, lanes
from blo.linsolve._precondition import Preconditioning, inverse_of
from blo.linsolve._space import InnerProduct, Space
from blo.operators import Operator

#: Relative residual above which the recursive residual is used instead of the true one, which costs a product: the
#: difference of the two, made by rounding, is far smaller than this.
_FAR = 1e-3
#: The cosine between a direction and the image of the last one is zero in exact arithmetic. Above this value products
#: are so inaccurate (bfloat16 inside the operator) that the recursive residual means nothing.
_ROUGH = 1e-4
#: How many times larger than the smallest residual so far the last one may be. For a positive definite operator it
#: rises and falls, while the error in the norm of A decreases in every iteration.
_RISE = 100.0


@dataclass(frozen=True, eq=False)
class CG(LinearSolver):
    """Conjugate gradients for symmetric positive definite operators.

    Each lane has its own step sizes. A lane stops when its residual is below `tol`, or at a direction of non-positive
    curvature, which is reported as `indefinite`. It returns its last iterate, which has the smallest error in the norm
    of A over its Krylov space. If the lane is indefinite, or the last residual is larger than `|b|` or far larger than
    an earlier one, it returns the iterate with the smallest residual or a multiple of the last iterate, whichever
    leaves the smaller residual. So the relative residual is never above 1, unless `tol` is 0.

    Source: Hestenes and Stiefel (1952); Shewchuk (1994), sections 8 and 12.

    Attributes:
        max_iter: maximum number of products with the operator, besides one for the guess and one that measures the
            final residual if that is small or in doubt.
        tol: relative residual at which a lane stops, measured without the preconditioner. None runs `max_iter`
            iterations, as an intended approximation: a lane stops earlier only at rounding level. 0 does the same, but
            a lane returns its last iterate, however large its residual, unless it is found to be indefinite.
        damping: d in `(A + d I) x = b`; a positive one helps if the operator is nearly singular.
        preconditioner: `v -> M^-1 v` on flat vectors `(*lanes, n)`, an operator or a callable, symmetric positive
            definite; an approximate inverse of the whole Hessian also works on a tangent space. Or a `Nystrom`.
        inner: the inner product `(a, b)` of vectors `(*axes, n)`, shape `(*axes, 1)`, for which A and the
            preconditioner are symmetric; None for the Euclidean one. See `blo.distributed.inner_product`.

    Raises:
        ValueError: if `tol` or `damping` is negative, or `max_iter` is below 1.
        StructureError: by `solve`, if the operator is not declared symmetric.
    """

    max_iter: int = 100
    tol: float | None = 1e-10
    damping: float = 0.0
    preconditioner: Preconditioning | None = None
    inner: InnerProduct | None = None

    def __post_init__(self) -> None:
        require_tolerance(self.tol, "CG.tol")
        require_nonnegative(self.damping, "CG.damping")
        require_count(self.max_iter, "CG.max_iter", "To solve no system, use the strategy `Zero`.")

    def relaxed(self, tol: Tensor) -> LinearSolver:
        return replace(self, tol=raised(self.tol, tol))

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        require_symmetric(operator, "CG")
        apply = damped(operator, self.damping)
        inverse = inverse_of(self.preconditioner, operator, b)

        space, dot = Space(self.inner), self.inner or euclidean
        # Solve for b / max|b|: squares of a tiny or huge b would underflow or overflow.
        size, zero = space.size(b)
        rhs = b / size
        x, r = started(apply, rhs, x0, size, zero, space)
        bb = dot(rhs, rhs)
        goal = floor_of(self.tol, b) ** 2 * bb
        given = (apply, inverse, x, r, goal, self.max_iter)
        ended = alone(*given) if self.inner is None else None
        if ended is None:
            ended = lanes(*given, dot)
        textbook = isinstance(self.tol, float) and self.tol == 0  # `relaxed` makes it a tensor
        x, residual = _judged(
            ended, rhs, bb, textbook, lambda x: relative_residual(operator, x, rhs, self.damping, space), dot
        )
        iterations = _of_lanes(ended.iterations, rhs, torch.int64)
        indefinite = _of_lanes(ended.indefinite, rhs, torch.bool)
        return LinearSolution(size * x, residual, iterations, indefinite, "CG")


def _judged(
    ended: Ended,
    rhs: Tensor,
    bb: Tensor,
    textbook: bool,
    measure: Callable[[Tensor], Tensor],
    dot: InnerProduct,
) -> tuple[Tensor, Tensor]:
    """Return the iterate to return, and its relative residual: measured, unless the recursive one is good enough."""
    x, rr, least, indefinite = ended.x, ended.rr, ended.least, ended.indefinite
    numbers = isinstance(rr, float)
    size: Scalar = bb.item() if numbers else bb
    # For a positive definite operator each iterate minimises the error in the norm of A, so a residual that has risen
    # by a factor of up to `_RISE` is no failure.
    bound = _RISE**2 * least
    if not textbook:
        bound = min(size, bound) if numbers else torch.minimum(size, bound)
    far = ended.running & (rr <= bound) & (rr > _FAR**2 * size)
    if numbers:
        conjugate = far and _orthogonal(ended.p, ended.q)
    else:
        conjugate = all_true_on_cpu(far & (_cosine(ended.p, ended.q, dot) <= _ROUGH))
    if conjugate:
        return x, _of_lanes((rr / size) ** 0.5, rhs)
    lost = indefinite | (rr > bound)
    if lost if numbers else not all_true_on_cpu(~lost):
        # Of all multiples s x, s = <b, A x> / |A x|^2 leaves the smallest residual: |b|^2 - s^2 |A x|^2, squared.
        # A x is b - r, without another product.
        image = rhs - ended.r
        length = dot(image, image)
        share = dot(rhs, image) / torch.where(length > 0, length, 1.0)
        shortened = bb - share * share * length < least
        better = torch.where(shortened, share * x, ended.best())
        x = better if numbers else torch.where(lost, better, x)
    residual = measure(x)
    if all_true_on_cpu(residual <= 1):
        return x, residual
    # The recursive residual has drifted from the true one. Return zero, whose relative residual is 1.
    worse = (residual > 1) & _of_lanes((lost | (rr <= bb)) & (bb > 0), rhs)
    return torch.where(worse.unsqueeze(-1), 0.0, x), torch.where(worse, 1.0, residual)


def _of_lanes(scalar: Scalar, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return one scalar for each lane as a tensor of shape `lanes`; a Python number goes to the device of `like`."""
    if not isinstance(scalar, Tensor):
        return like.new_full((), scalar, dtype=dtype)
    return scalar.squeeze(-1) if scalar.dim() else scalar


def _orthogonal(p: Tensor, q: Tensor) -> bool:
    """Return whether `_cosine` is at most `_ROUGH`, for a single vector; False if a square overflows."""
    pq, pp, qq = (torch.dot(a, b).item() for a, b in ((p, q), (p, p), (q, q)))
    return abs(pq) <= _ROUGH * math.sqrt(pp * qq) < math.inf


def _cosine(p: Tensor, q: Tensor, dot: InnerProduct) -> Tensor:
    """Return `|<p, q>| / (|p| |q|)`, shape `(*lanes, 1)`; zero in exact arithmetic, since directions are conjugate."""
    return dot(p, q).abs() / (dot(p, p).sqrt() * dot(q, q).sqrt())
