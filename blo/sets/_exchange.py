"""A fast search for the active rows of a polyhedron, which usually succeeds and verifies its result."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo.sets._rows import times

#: Maximum number of rounds of each attempt. A successful one takes two or three, and more with hundreds of rows.
_FIRST, _FROM_BELOW, _LAST = 8, 16, 3


class Found(NamedTuple):
    """The outcome of a search.

    Attributes:
        active: linearly independent rows that determine the nearest point, booleans of shape `(*lanes, k)`.
        multipliers: their multipliers, zero on the other rows, shape `(*lanes, k)`.
        solved: shape `(*lanes, 1)`; false where the polyhedron is empty or rounding made the search fail.
    """

    active: Tensor
    multipliers: Tensor
    solved: Tensor

    def of_rank(self, most: int) -> Found:
        """Return the outcome, with lanes marked as unsolved if more rows are active than can be independent."""
        return self._replace(solved=self.solved & (self.active.sum(-1, keepdim=True) <= most))

    def completed(self, other: Found) -> Found:
        """Return this outcome, with that of another search in the lanes that are not solved."""
        return Found(*(torch.where(self.solved, *pair) for pair in zip(self, other, strict=True)))


def exchange(gram: Tensor, excess: Tensor, tol: Tensor, equal: Tensor, unknowns: int) -> Found:
    """Find the active rows at the nearest point of a polyhedron by exchanging many of them at once.

    A lane counts as solved only if the result is verified: the active rows are independent and hold, and the others are
    not violated.

    Args:
        gram: inner products of the rows, which have norm one or zero, shape `(*lanes, k, k)`.
        excess: by how much the point violates each row, shape `(*lanes, k)`.
        tol: violation up to which a row holds, same shape.
        equal: rows that are equations, shape `(k,)`.
        unknowns: length of a row. No more rows than this are independent, even if rounding hides it.
    """
    found = _rounds(gram, excess, tol, equal, equal | (excess > tol), _FIRST).of_rank(unknowns)
    if all_true(found.solved):
        return found
    # With many more rows than unknowns it is better to start with few active rows. The shift of the Gram matrix makes
    # rows elastic, so that none are dependent. The last attempt starts from the rows found this way, without a shift.
    start, shift = equal.expand_as(excess), torch.finfo(gram.dtype).eps ** 0.75
    rough = _rounds(gram, excess, tol, equal, start, _FROM_BELOW, share=0.5, shift=shift)
    return found.completed(_rounds(gram, excess, tol, equal, rough.active, _LAST).of_rank(unknowns))


def _rounds(
    gram: Tensor,
    excess: Tensor,
    tol: Tensor,
    equal: Tensor,
    active: Tensor,
    most: int,
    *,
    share: float = 0.0,
    shift: float = 0.0,
) -> Found:
    """Repeat: make the active rows hold, drop those with a negative multiplier, and add those that are violated.

    This is Newton's method on the complementarity conditions. It takes few rounds or fails: it may meet dependent rows,
    or cycle. Of dependent rows the first ones are active.

    Source: Hintermüller, Ito and Kunisch (SIAM J. Optim. 2002), the primal-dual active set strategy.

    Args:
        gram: as `exchange` takes it, like `excess`, `tol` and `equal`.
        active: where to start.
        most: maximum number of rounds.
        share: rows are added if they are violated by more than this share of the largest violation.
        shift: a multiple of the identity to add to `gram`.
    """
    k = excess.shape[-1]
    identity = torch.eye(k, dtype=gram.dtype, device=gram.device)
    gram = gram + shift * identity if shift else gram
    for index in range(most):
        both = active.unsqueeze(-1) & active.unsqueeze(-2)
        factor, failure = torch.linalg.cholesky_ex(torch.where(both, gram, identity))
        failed = (failure > 0).unsqueeze(-1)
        y = torch.cholesky_solve(torch.where(active, excess, 0.0).unsqueeze(-1), factor).squeeze(-1)
        left = excess - times(gram, y)
        least = (torch.where(active, 0.0, left).amax(-1, keepdim=True) * share).maximum(tol) if share else tol
        wanted = equal | torch.where(active, y > 0, left > least)
        settled = (wanted == active).all(-1, keepdim=True)
        # On an accelerator the test would stall the queue, so all rounds are made there.
        if (excess.device.type == "cpu" and all_true(settled | failed)) or index == most - 1:
            break
        active = wanted
    # A squared pivot of the Cholesky factor is the squared distance of a row to the span of the rows before it; with a
    # shift it is larger.
    nothing = k * (4 * shift if shift else torch.finfo(gram.dtype).eps)
    dependent = active & (torch.diagonal(factor, dim1=-2, dim2=-1).square() <= nothing)
    holds = (torch.where(active, left.abs(), left) <= tol).all(-1, keepdim=True)
    return Found(active & ~dependent, y, settled & ~failed & holds & ~dependent.any(-1, keepdim=True))
