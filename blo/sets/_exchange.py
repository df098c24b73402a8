"""A guess at the active rows of a polyhedron that is right most of the time, and known to be so."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo.sets._rows import times

#: Exchanges after which a lane is left to a method that always ends. Those that end take two or three.
_ROUNDS = 8


def exchange(gram: Tensor, excess: Tensor, tol: Tensor, equal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the active rows at the nearest point of a polyhedron by exchanging all that are on the wrong side at once.

    Each round makes the active rows hold, lets go of those that pull, and takes in those that are violated: Newton's
    method on the complementarity conditions. It ends at a solution or, where rows depend on each other or rounds
    repeat, not at all.

    Source: Hintermüller, Ito and Kunisch (SIAM J. Optim. 2002), the primal-dual active set strategy.

    Args:
        gram: inner products of the rows, which have norm one or zero, shape `(*lanes, k, k)`.
        excess: by how much the point violates each row, shape `(*lanes, k)`.
        tol: below which a row holds, same shape.
        equal: rows that are equations, shape `(k,)`.

    Returns:
        The active rows, booleans of shape `(*lanes, k)`; their multipliers, zero elsewhere; and whether both are right,
        shape `(*lanes, 1)`: the active rows are independent and hold, the others are not violated.
    """
    k = excess.shape[-1]
    identity = torch.eye(k, dtype=gram.dtype, device=gram.device)
    active = equal | (excess > tol)
    for index in range(_ROUNDS):
        both = active.unsqueeze(-1) & active.unsqueeze(-2)
        factor, failure = torch.linalg.cholesky_ex(torch.where(both, gram, identity))
        y = torch.cholesky_solve(torch.where(active, excess, 0.0).unsqueeze(-1), factor).squeeze(-1)
        left = excess - times(gram, y)
        wanted = equal | torch.where(active, y > 0, left > tol)
        settled = (wanted == active).all(-1, keepdim=True)
        # Where a look stalls the device's queue there is one, at the end.
        if (excess.device.type == "cpu" and all_true(settled | (failure > 0).unsqueeze(-1))) or index == _ROUNDS - 1:
            break
        active = wanted
    # The square of a pivot is the squared distance of a row to the span of those before it.
    pivots = torch.diagonal(factor, dim1=-2, dim2=-1).square()
    independent = (pivots > k * torch.finfo(gram.dtype).eps).all(-1, keepdim=True) & (failure == 0).unsqueeze(-1)
    holds = (torch.where(active, left.abs(), left) <= tol).all(-1, keepdim=True)
    return active, y, settled & independent & holds
