"""Minimal residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._settings import require_count, require_nonnegative, require_tolerance
from blo.linsolve._base import (
    LinearSolution,
    LinearSolver,
    all_true,
    damped,
    dot,
    norm,
    require_symmetric,
    stride,
)
from blo.linsolve._precondition import Preconditioning, Product, inverse_of
from blo.linsolve._restart import Cycle, in_cycles
from blo.operators import Operator


@dataclass(frozen=True, eq=False)
class MINRES(LinearSolver):
    """Minimal residuals for symmetric operators, positive definite or not.

    Each lane has its own recurrences and stops when its residual is below `tol`. An indefinite lane is solved like
    any other, and reported as `indefinite` when the Krylov space holds a direction of non-positive curvature.
    Where rounding leaves the true residual above `tol`, the method starts again from it.

    Source: Paige and Saunders (1975); Choi, Paige and Saunders (2011) for the residual's recurrence.

    Attributes:
        max_iter: most iterations; beside their products there is one for the guess and one for each true residual.
        tol: relative residual at which a lane stops, measured without the preconditioner; None for `max_iter`
            iterations, as an approximation by choice: a lane stops at rounding alone.
        damping: d in `(A + d I) x = b`.
        preconditioner: `v -> M^-1 v` on flat vectors `(*lanes, n)`, an operator or a callable, symmetric positive
            definite even where A is not; an inverse of the whole Hessian serves on every tangent space. Or a
            `Nystrom`.

    Raises:
        ValueError: if `tol` or `damping` is negative, or `max_iter` is below 1.
        StructureError: by `solve`, if the operator is not declared symmetric.
    """

    max_iter: int = 100
    tol: float | None = 1e-10
    damping: float = 0.0
    preconditioner: Preconditioning | None = None

    def __post_init__(self) -> None:
        require_tolerance(self.tol, "MINRES.tol")
        require_nonnegative(self.damping, "MINRES.damping")
        require_count(self.max_iter, "MINRES.max_iter", "For no solve, use `Zero`.")

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        require_symmetric(operator, "MINRES")
        apply = damped(operator, self.damping)
        inverse = inverse_of(self.preconditioner, operator, b)

        def cycle(r: Tensor, running: Tensor, goal: Tensor, most: int) -> Cycle:
            return _lanczos(apply, inverse, r, running, goal, most)

        return in_cycles(
            cycle,
            apply,
            b,
            x0,
            tol=self.tol,
            max_iter=self.max_iter,
            length=self.max_iter,
            gain=0.5,  # less is rounding
            method="MINRES",
        )


def _lanczos(
    apply: Callable[[Tensor], Tensor], inverse: Product | None, r: Tensor, running: Tensor, goal: Tensor, most: int
) -> Cycle:
    """Minimise the residual over growing Krylov spaces: the Lanczos process and one Givens rotation a step."""
    looks, eps = stride(r), torch.finfo(r.dtype).eps
    y = r if inverse is None else inverse(r)
    beta = dot(r, y).clamp(min=0).sqrt()
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
        alpha = dot(v, q)
        # The tridiagonal matrix is positive definite as long as its pivots are: they are CG's curvatures.
        pivot = alpha - beta * beta / pivot
        indefinite = indefinite | (running & (pivot <= 0))
        pivot = torch.where(pivot == 0, eps, pivot)
        u = q - alpha * s - beta * s_old
        y = u if inverse is None else inverse(u)
        beta_old, beta = beta, dot(u, y).clamp(min=0).sqrt()
        # The last rotation acts on this column of the matrix, and a new one clears what is below its diagonal.
        far_old, delta, corner = far, cosine * above + sine * alpha, sine * above - cosine * alpha
        far, above = sine * beta, -cosine * beta
        diagonal = torch.hypot(corner, beta)
        scale = torch.maximum(scale, torch.maximum(alpha.abs(), torch.maximum(beta, beta_old * (index > 0))))
        running = running & (diagonal > 100 * eps * scale)  # a singular matrix has no more to give
        divisor = torch.where(running, diagonal, 1.0)
        cosine, sine = corner / divisor, beta / divisor
        w_old, w = w, (v - far_old * w_old - delta * w) / divisor
        x = torch.where(running, x + cosine * left * w, x)
        left = torch.where(running, sine * left, left)
        s_old, s = s, u / torch.where(beta > 0, beta, 1.0)
        v = y / torch.where(beta > 0, beta, 1.0)
        # Without a preconditioner `left` is the norm of the residual.
        r = sine * sine * r - cosine * left * s if inverse is not None else r
        steps = steps + running
        running = running & ((left if inverse is None else norm(r)) > goal)
    return Cycle(x, steps, indefinite, products)
