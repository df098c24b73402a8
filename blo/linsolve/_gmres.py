"""The generalised minimal residual method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._autodiff import all_true, stride, transforms_active
from blo._precision import require_single
from blo._settings import require_count, require_nonnegative, require_tolerance
from blo.linsolve._base import LinearSolution, LinearSolver, damped, raised
from blo.linsolve._precondition import Preconditioning, Product, inverse_of
from blo.linsolve._restart import Cycle, in_cycles
from blo.linsolve._space import InnerProduct, Space
from blo.operators import Operator


@dataclass(frozen=True, eq=False)
class GMRES(LinearSolver):
    """Restarted generalised minimal residuals, for any operator.

    Each lane has its own Krylov space and stops when its residual is below `tol`. The basis takes the memory of
    `restart` vectors. A restarted method can stagnate: a lane stops after a cycle that does not reduce its residual.

    Source: Saad and Schultz (1986); Giraud, Langou and Rozloznik (2005) for repeating Gram-Schmidt once.

    Attributes:
        max_iter: maximum number of iterations, each with one product; the guess and each cycle take one more.
        tol: relative residual at which a lane stops, measured without the preconditioner. None runs `max_iter`
            iterations, as an intended approximation: a lane stops earlier only at rounding level.
        damping: d in `(A + d I) x = b`.
        restart: iterations of one cycle.
        preconditioner: `v -> M^-1 v` on flat vectors `(*lanes, n)`, an operator or a callable, applied from the
            right; an approximate inverse of the whole Jacobian also works on a tangent space.
        inner: the inner product `(a, b)` of vectors `(*axes, n)`, shape `(*axes, 1)`; residuals are minimised in its
            norm. None for the Euclidean one. See `blo.distributed.inner_product`.

    Raises:
        ValueError: if `tol` or `damping` is negative, or `max_iter` or `restart` is below 1.
        StructureError: by `solve`, for half precision.
    """

    max_iter: int = 100
    tol: float | None = 1e-10
    damping: float = 0.0
    restart: int = 50
    preconditioner: Preconditioning | None = None
    inner: InnerProduct | None = None

    def __post_init__(self) -> None:
        require_tolerance(self.tol, "GMRES.tol")
        require_nonnegative(self.damping, "GMRES.damping")
        require_count(self.max_iter, "GMRES.max_iter", "To solve no system, use the strategy `Zero`.")
        require_count(self.restart, "GMRES.restart", "A few dozen are usual.")

    def relaxed(self, tol: Tensor) -> LinearSolver:
        return replace(self, tol=raised(self.tol, tol))

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        require_single(b.dtype, "GMRES", "CG")
        apply = damped(operator, self.damping)
        inverse, space = inverse_of(self.preconditioner, operator, b), Space(self.inner)

        def cycle(r: Tensor, running: Tensor, goal: Tensor, most: int) -> Cycle:
            return _arnoldi(apply, inverse, operator.symmetric, space, r, running, goal, most)

        return in_cycles(
            cycle,
            apply,
            b,
            x0,
            tol=self.tol,
            max_iter=self.max_iter,
            # If coordinates are spread over processes, b has some of them only, but all processes need one length.
            length=min(self.restart, b.shape[-1]) if self.inner is None else self.restart,
            gain=1.0,
            method="GMRES",
            space=space,
        )


def _arnoldi(
    apply: Callable[[Tensor], Tensor],
    inverse: Product | None,
    symmetric: bool,
    space: Space,
    r: Tensor,
    running: Tensor,
    goal: Tensor,
    most: int,
) -> Cycle:
    """Minimise the residual over one Krylov space, with the Arnoldi process and one reflection a step."""
    looks, eps = stride(r), torch.finfo(r.dtype).eps
    left = space.norm(r)
    v = torch.where(running, r / torch.where(running, left, 1.0), 0.0)
    steps, indefinite = torch.zeros_like(running, dtype=torch.int64), torch.zeros_like(running)
    products = 0
    for k in range(most):
        if k % looks == 0 and all_true(~running):
            break
        z = v if inverse is None else inverse(v)
        w = apply(z)
        products += 1
        indefinite = indefinite | (running & (space.dot(z, w) <= 0) & symmetric)
        if k == 0:
            # Made from w, so that under `vmap` they have every mapped axis and can be written in place.
            basis = torch.zeros_like(w).unsqueeze(-2).repeat(*[1] * (w.dim() - 1), most, 1)
            none = torch.zeros_like(w[..., :1])
            turns = none.unsqueeze(-1) + torch.eye(most + 1, dtype=w.dtype, device=w.device)
            upper, rest = turns[..., :most, :most].clone(), none.expand(*none.shape[:-1], most).clone()
            # A backward pass needs the values from before the next write in place.
            kept = torch.clone if w.requires_grad or transforms_active() else _same
        basis[..., k, :] = v
        before = space.norm(w)
        w, column = _orthogonal(w, kept(basis[..., : k + 1, :]), space)
        below = space.norm(w)
        below = torch.where(below > 10 * eps * before, below, 0.0)  # the Krylov space is invariant
        # `turns` accumulates the reflections that make the Hessenberg matrix triangular. Apply it to the new column,
        # then add the reflection that zeroes the entry below the diagonal.
        column = (kept(turns[..., : k + 1, : k + 1]) @ column.unsqueeze(-1)).squeeze(-1)
        corner = column[..., k:]
        diagonal = torch.hypot(corner, below)
        # A zero on the diagonal means that A is singular on the Krylov space: the lane cannot improve.
        running = running & (diagonal > 100 * eps * before)
        divisor = torch.where(running, diagonal, 1.0)
        cosine, sine = corner / divisor, below / divisor
        turn = torch.cat([cosine, sine, sine, -cosine], -1).unflatten(-1, (2, 2))
        turns[..., k : k + 2, :] = turn @ kept(turns[..., k : k + 2, :])
        # In a lane that has stopped, row and column k are those of the identity and the right-hand side is zero, so v
        # gets the coefficient zero.
        upper[..., :k, k] = torch.where(running, column[..., :k], 0.0)
        upper[..., k : k + 1, k] = torch.where(running, diagonal, 1.0)
        rest[..., k : k + 1] = torch.where(running, cosine * left, 0.0)
        # The last entry of the rotated right-hand side is the norm of the residual.
        left = torch.where(running, sine * left, left)
        steps = steps + running
        running = running & (left > goal)
        v = torch.where(running, w / torch.where(below > 0, below, 1.0), 0.0)
    if not products:
        return Cycle(torch.zeros_like(r), steps, indefinite, 0)
    shares = torch.linalg.solve_triangular(upper, rest.unsqueeze(-1), upper=True)
    correction = (basis.mT @ shares).squeeze(-1)
    return Cycle(correction if inverse is None else inverse(correction), steps, indefinite, products)


def _orthogonal(w: Tensor, basis: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    """Return the part of w orthogonal to the basis `(*lanes, k, n)`, and the coefficients of w in it, `(*lanes, k)`."""
    shares = torch.zeros_like(basis[..., 0])
    for _ in range(2):  # the second pass removes the components that rounding leaves after the first
        more = space.shares(basis, w)
        w = w - (basis.mT @ more.unsqueeze(-1)).squeeze(-1)
        shares = shares + more
    return w, shares


def _same(v: Tensor) -> Tensor:
    return v
