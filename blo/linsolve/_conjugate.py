"""The recursion of conjugate gradients: for all lanes at once, and for one vector with its scalars as Python numbers.

Both make the same steps. A single vector has its own loop because, after a product that streams a large matrix through
the cache, a kernel on a single number costs as much as one on a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from blo._autodiff import all_true, stride, transforms_active
from blo._vectors import dot as inner_product
from blo.linsolve._least import Least
from blo.linsolve._space import InnerProduct

#: v -> A v, or v -> M^-1 v.
Product: TypeAlias = Callable[[Tensor], Tensor]
#: Shape `(*lanes, 1)`, or `()` without lanes; from `alone`, a Python number.
Scalar: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Ended:
    """The state in which a recursion ended.

    Attributes:
        x: the last iterate, shape `(*lanes, n)`.
        r: its recursive residual.
        p: the next direction.
        q: the image of the last direction, or of p if p has no positive curvature; p where no product was made.
        rr: the squared norm of r.
        running: whether the goal has not been reached and all curvature was positive.
        indefinite: whether a direction of non-positive curvature was found.
        iterations: the number of steps: products without that along which curvature was not positive.
        least: the smallest squared norm of a residual.
        best: returns the iterate with that residual.
    """

    x: Tensor
    r: Tensor
    p: Tensor
    q: Tensor
    rr: Scalar
    running: Scalar
    indefinite: Scalar
    iterations: Scalar
    least: Scalar
    best: Callable[[], Tensor]


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each lane, shape `(*lanes, 1)`, or `()` without lanes."""
    return torch.dot(a, b) if a.dim() == b.dim() == 1 else inner_product(a, b)


def lanes(
    apply: Product,
    inverse: Product | None,
    x: Tensor,
    r: Tensor,
    goal: Tensor,
    most: int,
    dot: InnerProduct,
) -> Ended:
    """Run every lane to its goal.

    Args:
        apply: the product with the matrix.
        inverse: v -> M^-1 v for the preconditioner M, or None.
        x: the start, shape `(*lanes, n)`.
        r: the residual there.
        goal: the squared norm of the residual at which a lane stops.
        most: the maximum number of products.
        dot: the inner product.
    """
    p = q = r if inverse is None else inverse(r)
    rr = dot(r, r)
    met = Least(x, rr)
    rz = rr if inverse is None else dot(r, p)
    running = rr > goal
    iterations = torch.zeros_like(running, dtype=torch.int64)
    indefinite = torch.zeros_like(running)
    looks = stride(r)
    # While every lane is running, no mask is needed. Only the CPU tests for this, since it stalls an accelerator.
    all_running = looks == 1 and all_true(running)
    together = 0  # the number of iterations without a mask
    for index in range(most):
        if not all_running and index % looks == 0 and all_true(~running):
            break
        # step = <r, M^-1 r> / <p, A p> minimises the error in the norm of A along p, which needs <p, A p> > 0.
        q = apply(p)
        bend = dot(p, q)
        all_running = all_running and all_true(bend > 0)
        if not all_running:
            indefinite = indefinite | (running & (bend <= 0))
            running = running & (bend > 0)
        mask = None if all_running else running
        step = _ratio(rz, bend, mask)
        # In a lane that has stopped, p and q may be infinite, and a step of zero would give NaN: select instead.
        x = _move(x, torch.addcmul(x, step, p), mask)
        r = _move(r, torch.addcmul(r, step, q, value=-1), mask)
        rr = dot(r, r)
        z = r if inverse is None else inverse(r)
        rz_next = rr if inverse is None else dot(r, z)
        # This ratio makes the next direction conjugate to the last one: <p, A p_last> = 0.
        p = torch.addcmul(z, _ratio(rz_next, rz, mask), p)
        rz = rz_next
        if all_running:
            together += 1
        else:
            iterations = iterations + running
        met.see(x, rr)
        all_running = all_running and all_true(rr > goal)
        running = running if all_running else running & (rr > goal)
    return Ended(x, r, p, q, rr, running, indefinite, together + iterations, met.least(), met.iterate)


def alone(apply: Product, inverse: Product | None, x: Tensor, r: Tensor, goal: Tensor, most: int) -> Ended | None:
    """Run one vector on the CPU as `lanes` does; None for any other, inside transforms and where there is a graph."""
    if r.dim() != 1 or r.device.type != "cpu" or transforms_active():
        return None
    best, bound, top = x, goal.item(), torch.finfo(r.dtype).max
    p = q = r if inverse is None else inverse(r)
    rr = least = torch.dot(r, r).item()
    rz = rr if inverse is None else torch.dot(r, p).item()
    running, indefinite, count = rr > bound, False, 0
    while running and count < most:
        q = apply(p)
        if p.requires_grad or q.requires_grad:  # a number would cut the graph
            return None
        bend = torch.dot(p, q).item()
        if not bend > 0:
            running, indefinite = False, bend <= 0
            break
        step = _quotient(rz, bend, top)
        x, r = torch.add(x, p, alpha=step), torch.sub(r, q, alpha=step)
        rr = torch.dot(r, r).item()
        z = r if inverse is None else inverse(r)
        last, rz = rz, rr if inverse is None else torch.dot(r, z).item()
        p = torch.add(z, p, alpha=_quotient(rz, last, top))
        if rr < least:
            best, least = x, rr
        running, count = rr > bound, count + 1
    return Ended(x, r, p, q, rr, running, indefinite, count, least, lambda: best)


def _quotient(above: float, below: float, top: float) -> float:
    """Return the quotient, limited to the range of the vectors' dtype: torch rejects factors outside it."""
    return max(min(above / below, top), -top) if below else math.nan


def _ratio(above: Tensor, below: Tensor, mask: Tensor | None) -> Tensor:
    """Return the quotient in the lanes of the mask (in all lanes if it is None), and zero elsewhere."""
    ratio = above / below
    return ratio if mask is None else torch.where(mask, ratio, 0.0)


def _move(old: Tensor, new: Tensor, mask: Tensor | None) -> Tensor:
    """Return the new vector in the lanes of the mask (in all lanes if it is None), and the old one elsewhere."""
    return new if mask is None else torch.where(mask, new, old)
