"""Sets of positive numbers on which the entropy is a measure of distance: what they make of logarithms."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._term import Term, per_lane
from blo.errors import StructureError
from blo.sets import NonNegative, Product, Simplex

__all__ = ["exponentials", "lifted"]


def exponentials(term: Term, logarithms: Tensor, solver: str) -> Tensor:
    """Return the point of the set nearest to `exp(logarithms)` in the Kullback-Leibler divergence.

    No coordinate is below the least positive number, so that its logarithm stays finite.

    Args:
        term: the set.
        logarithms: shape `(*lanes, n)`; in a simplex they may have a common shift.
        solver: for the message.

    Raises:
        StructureError: naming the solver, for any other set and for penalties.
    """
    if isinstance(term, NonNegative):
        return logarithms.exp().clamp(min=torch.finfo(logarithms.dtype).tiny)
    if isinstance(term, Simplex) and term.cap is None:
        return (per_lane(term.total) * logarithms.softmax(-1)).clamp(min=torch.finfo(logarithms.dtype).tiny)
    if isinstance(term, Product) and term.spans is not None:
        parts = zip(term.sets, term.spans, strict=True)
        return torch.cat([exponentials(part, logarithms[..., span], solver) for part, span in parts], -1)
    name = "Simplex with a cap" if isinstance(term, Simplex) else type(term).__name__
    raise StructureError(
        f"`{solver}` moves logarithms, so it takes `Simplex`, `NonNegative` and a `Product` of these, but got {name}. "
        "Use ProjectedGradient() or FISTA()."
    )


def lifted(term: Term, z: Tensor, solver: str) -> Tensor:
    """Return the point of the set next to z whose coordinates are all positive.

    A coordinate that is zero would stay there: it is given `sqrt(eps)` of the largest, or of 1.
    """
    near = term.prox(z, 1.0)
    top = near.amax(-1, keepdim=True)
    floor = torch.finfo(z.dtype).eps ** 0.5 * torch.where(top > 0, top, 1.0)
    return exponentials(term, torch.where(near > 0, near, floor).log(), solver)
