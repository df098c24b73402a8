"""A guess at the active rows of a polyhedron that is right most of the time, and known to be so."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo.sets._rows import times

#: Exchanges after which a lane is left to a method that always ends. Those that end take two or three.
_ROUNDS = 8


class Found(NamedTuple):
    """The outcome of a search.

    Attributes:
        active: linearly independent rows that determine the nearest point, booleans of shape `(*lanes, k)`.
        multipliers: their multipliers, zero on the other rows, shape `(*lanes, k)`.
        solved: shape `(*lanes, 1)`; false where the polyhedron is empty or rounding kept the search from its end.
    """

    active: Tensor
    multipliers: Tensor
    solved: Tensor

    def completed(self, other: Found) -> Found:
        """Return the outcome of another search in lanes where this one is not solved."""
        return Found(*(torch.where(self.solved, *pair) for pair in zip(self, other, strict=True)))


def exchange(gram: Tensor, excess: Tensor, tol: Tensor, equal: Tensor) -> Found:
    """Find the active rows at the nearest point of a polyhedron by exchanging all that are on the wrong side at once.

    Where they end, rounds are few, but they may meet rows that depend on each other, or repeat. What is found is
    solved where it is known to be right: the active rows are independent and hold, the others are not violated.

    Args:
        gram: inner products of the rows, which have norm one or zero, shape `(*lanes, k, k)`.
        excess: by how much the point violates each row, shape `(*lanes, k)`.
        tol: below which a row holds, same shape.
        equal: rows that are equations, shape `(k,)`.
    """
    start = equal | (excess > tol)
    found = _rounds(gram, excess, tol, equal, start)
    if all_true(found.solved):
        return found
    # With rows that give way a little no rows are dependent. Those that hold then are looked at again as they are.
    shift = torch.finfo(gram.dtype).eps ** 0.75
    rough = _rounds(gram, excess, tol, equal, start, shift)
    return found.completed(_rounds(gram, excess, tol, equal, rough.active))


def _rounds(
    gram: Tensor, excess: Tensor, tol: Tensor, equal: Tensor, active: Tensor, shift: float | None = None
) -> Found:
    """Make the active rows hold, let go of those that pull, take in those that are violated; and so on.

    This is Newton's method on the complementarity conditions. Of rows that depend on each other the first are active.

    Source: Hintermüller, Ito and Kunisch (SIAM J. Optim. 2002), the primal-dual active set strategy.

    Args:
        gram: as `exchange` takes it, like `excess`, `tol` and `equal`.
        active: where to start.
        shift: a multiple of the identity to add to `gram`.
    """
    k = excess.shape[-1]
    identity = torch.eye(k, dtype=gram.dtype, device=gram.device)
    gram = gram if shift is None else gram + shift * identity
    for index in range(_ROUNDS):
        both = active.unsqueeze(-1) & active.unsqueeze(-2)
        factor, failure = torch.linalg.cholesky_ex(torch.where(both, gram, identity))
        failed = (failure > 0).unsqueeze(-1)
        y = torch.cholesky_solve(torch.where(active, excess, 0.0).unsqueeze(-1), factor).squeeze(-1)
        left = excess - times(gram, y)
        wanted = equal | torch.where(active, y > 0, left > tol)
        settled = (wanted == active).all(-1, keepdim=True)
        # Where a look stalls the device's queue there is one, at the end.
        if (excess.device.type == "cpu" and all_true(settled | failed)) or index == _ROUNDS - 1:
            break
        active = wanted
    # The square of a pivot is the squared distance of a row to the span of those before it, and more when shifted.
    least = k * (torch.finfo(gram.dtype).eps if shift is None else 4 * shift)
    dependent = active & (torch.diagonal(factor, dim1=-2, dim2=-1).square() <= least)
    holds = (torch.where(active, left.abs(), left) <= tol).all(-1, keepdim=True)
    return Found(active & ~dependent, y, settled & ~failed & holds & ~dependent.any(-1, keepdim=True))
