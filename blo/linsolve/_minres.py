"""The minimal residual method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._autodiff import all_true, stride
from blo._settings import require_count, require_nonnegative, require_tolerance
from blo.linsolve._base import LinearSolution, LinearSolver, damped, raised, require_symmetric
from blo.linsolve._precondition import Preconditioning, Product, inverse_of
from blo.linsolve._restart import Cycle, in_cycles
from blo.linsolve._space import InnerProduct, Space
from blo.operators import Operator


@dataclass(frozen=True, eq=False)
class MINRES(LinearSolver):
    """Minimal residuals for symmetric operators, positive definite or not.

    Each lane has its own recurrences and stops when its residual is below `tol`. An indefinite lane is solved like
    any other, and reported as `indefinite` if the Krylov space contains a direction of non-positive curvature.
    If rounding leaves the true residual above `tol`, the method restarts from it.

    Source: Paige and Saunders (1975); Choi, Paige and Saunders (2011) for the recurrence of the residual.

    Attributes:
        max_iter: maximum number of iterations, each with one product; the guess and each true residual take one more.
        tol: relative residual at which a lane stops, measured without the preconditioner. None runs `max_iter`
            iterations, as an intended approximation: a lane stops earlier only at rounding level.
        damping: d in `(A + d I) x = b`.
        preconditioner: `v -> M^-1 v` on flat vectors `(*lanes, n)`, an operator or a callable, symmetric positive
            definite even where A is not; an approximate inverse of the whole Hessian also works on a tangent space. Or
            a `Nystrom`.
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
        require_tolerance(self.tol, "MINRES.tol")
        require_nonnegative(self.damping, "MINRES.damping")
        require_count(self.max_iter, "MINRES.max_iter", "To solve no system, use the strategy `Zero`.")

    def relaxed(self, tol: Tensor) -> LinearSolver:
        return replace(self, tol=raised(self.tol, tol))

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        require_symmetric(operator, "MINRES")
        apply = damped(operator, self.damping)
        inverse, space = inverse_of(self.preconditioner, operator, b), Space(self.inner)

        def cycle(r: Tensor, running: Tensor, goal: Tensor, most: int) -> Cycle:
            return _lanczos(apply, inverse, space, r, running, goal, most)

        return in_cycles(
            cycle,
            apply,
            b,
            x0,
            tol=self.tol,
            max_iter=self.max_iter,
            length=self.max_iter,
            gain=0.5,  # a cycle that gains less is limited by rounding
            method="MINRES",
            space=space,
        )


def _lanczos(
    apply: Callable[[Tensor], Tensor],
    inverse: Product | None,
    space: Space,
    r: Tensor,
    running: Tensor,
    goal: Tensor,
    most: int,
) -> Cycle:
    """Minimise the residual over growing Krylov spaces: the Lanczos process and one Givens rotation a step."""
    looks, eps = stride(r), torch.finfo(r.dtype).eps
    y = r if inverse is None else inverse(r)
    beta = space.dot(r, y).clamp(min=0).sqrt()
    running = running & (beta > 0)
    zero, one = torch.zeros_like(beta), torch.ones_like(beta)
    x, w, w_old, s_old = (torch.zeros_like(r) for _ in range(4))
    s, v = r / torch.where(running, beta, 1.0), y / torch.where(running, beta, 1.0)
    cosine, sine, above, far, left, scale, pivot = -one, zero, zero, zero, beta, zero, one / 0
    steps, indefinite = torch.zeros_like(running, dtype=torch.int64), torch.zeros_like(running)
    products = 0
    for index in range(most):
        if index % looks == 0 and all_true(~running):
            break
        v = torch.where(running, v, 0.0)
        q = apply(v)
        products += 1
        alpha = space.dot(v, q)
        # The pivots of the Lanczos tridiagonal matrix T = L D L' are d_k = alpha_k - beta_k^2 / d_(k-1). T is positive
        # definite as long as they are positive; without a preconditioner they are the curvatures p'Ap / r'r of CG.
        pivot = alpha - beta * beta / pivot
        indefinite = indefinite | (running & (pivot <= 0))
        pivot = torch.where(pivot == 0, eps, pivot)
        u = q - alpha * s - beta * s_old
        y = u if inverse is None else inverse(u)
        beta_old, beta = beta, space.dot(u, y).clamp(min=0).sqrt()
        # The earlier reflections turn the new column of T into (far_old, delta, corner); a new one zeroes the entry
        # beta below the diagonal.
        far_old, delta, corner = far, cosine * above + sine * alpha, sine * above - cosine * alpha
        far, above = sine * beta, -cosine * beta
        diagonal = torch.hypot(corner, beta)
        scale = torch.maximum(scale, torch.maximum(alpha.abs(), torch.maximum(beta, beta_old * (index > 0))))
        # A zero on the diagonal means that A is singular on the Krylov space: the lane cannot improve.
        running = running & (diagonal > 100 * eps * scale)
        divisor = torch.where(running, diagonal, 1.0)
        cosine, sine = corner / divisor, beta / divisor
        # w is a column of V R^-1, with the Lanczos vectors V and T = Q R: three terms, so no basis is stored.
        w_old, w = w, (v - far_old * w_old - delta * w) / divisor
        x = torch.where(running, x + cosine * left * w, x)
        left = torch.where(running, sine * left, left)
        s_old, s = s, u / torch.where(beta > 0, beta, 1.0)
        v = y / torch.where(beta > 0, beta, 1.0)
        # `left` is sqrt(r' M^-1 r): without a preconditioner the norm of r, with one r itself needs its recurrence.
        r = sine * sine * r - cosine * left * s if inverse is not None else r
        steps = steps + running
        running = running & ((left if inverse is None else space.norm(r)) > goal)
    return Cycle(x, steps, indefinite, products)
