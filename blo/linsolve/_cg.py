"""Conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import surely
from blo._settings import require_count, require_nonnegative, require_tolerance
from blo._torch import functorch
from blo.linsolve._base import (
    LinearSolution,
    LinearSolver,
    all_true,
    damped,
    floor_of,
    largest,
    norm,
    relative_residual,
    require_symmetric,
    started,
    stride,
)
from blo.linsolve._least import Least
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
        bb = _dot(rhs, rhs)
        goal = floor_of(self.tol, b) ** 2 * bb
        p = r if inverse is None else inverse(r)
        rr = _dot(r, r)
        met = Least(x, rr)
        rz = rr if inverse is None else _dot(r, p)
        running = ~zero & (rr > goal)
        iterations = torch.zeros_like(running, dtype=torch.int64)
        indefinite = torch.zeros_like(running)
        looks = stride(b)
        # While no lane rests, none has to be kept from moving. An accelerator is not stalled to find out.
        whole, together = looks == 1 and all_true(running), 0
        for index in range(self.max_iter):
            if not whole and index % looks == 0 and all_true(~running):
                break
            q = apply(p)
            bend = _dot(p, q)
            whole = whole and _exceeds(bend, 0.0)
            if not whole:
                indefinite = indefinite | (running & (bend <= 0))
                running = running & (bend > 0)
            mask = None if whole else running
            step = _ratio(rz, bend, mask)
            # Where a lane rests, p and q may be infinite.
            x = _move(x, torch.addcmul(x, step, p), mask)
            r = _move(r, torch.addcmul(r, step, q, value=-1), mask)
            rr = _dot(r, r)
            z = r if inverse is None else inverse(r)
            rz_next = rr if inverse is None else _dot(r, z)
            p = torch.addcmul(z, _ratio(rz_next, rz, mask), p)
            rz = rz_next
            if whole:
                together += 1
            else:
                iterations = iterations + running
            met.see(x, rr)
            whole = whole and _exceeds(rr, goal)
            running = running if whole else running & (rr > goal)
        # Where the operator is positive definite, each iterate is the best in its norm, whatever the residual.
        textbook = isinstance(self.tol, float) and self.tol == 0  # Newton passes a tensor
        least = met.least()
        bound = _RISE**2 * least if textbook else torch.minimum(bb, _RISE**2 * least)
        lost = indefinite | (rr > bound)
        if surely(running & ~lost & (rr > _FAR**2 * bb)) and surely(_cosine(p, q) <= _ROUGH):
            residual = (rr / bb).sqrt().squeeze(-1)
        else:
            if not surely(~lost):
                # Of all multiples of x, this one leaves the least residual.
                image = rhs - r
                length = _dot(image, image)
                share = _dot(rhs, image) / torch.where(length > 0, length, 1.0)
                shortened = bb - share * share * length < least
                x = torch.where(lost, torch.where(shortened, share * x, met.iterate()), x)
            residual = relative_residual(operator, x, rhs, self.damping)
            # There the recursion has lost touch with the true residual.
            worse = (residual > 1) & (lost | (rr <= bb)).squeeze(-1) & ~zero.squeeze(-1)
            x, residual = torch.where(worse.unsqueeze(-1), 0.0, x), torch.where(worse, 1.0, residual)
        return LinearSolution(size * x, residual, together + iterations.squeeze(-1), indefinite.squeeze(-1), "CG")


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each lane, shape `(*lanes, 1)`, or `()` without lanes."""
    return torch.dot(a, b) if a.dim() == b.dim() == 1 else (a * b).sum(-1, keepdim=True)


def _cosine(p: Tensor, q: Tensor) -> Tensor:
    """Return how far each lane's directions are from conjugate: zero but for rounding."""
    return _dot(p, q).abs() / (norm(p) * norm(q))


def _exceeds(value: Tensor, bound: Tensor | float) -> bool:
    """Tell whether every lane's value exceeds its bound."""
    # A single number is read and compared at a third of the cost: small kernels are dear beside large products.
    alone = value.dim() == 0 and not functorch.is_functorch_wrapped_tensor(value)
    return value.item() > float(bound) if alone else all_true(value > bound)


def _ratio(above: Tensor, below: Tensor, mask: Tensor | None) -> Tensor:
    """Return the quotient in the lanes of the mask, in all of them without one, and zero elsewhere."""
    ratio = above / below
    return ratio if mask is None else torch.where(mask, ratio, 0.0)


def _move(old: Tensor, new: Tensor, mask: Tensor | None) -> Tensor:
    """Return the new vector in the lanes of the mask, in all of them without one."""
    return new if mask is None else torch.where(mask, new, old)
