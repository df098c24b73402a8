"""Sets of positive numbers for mirror descent with the entropy: from logarithms to points of the set."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._term import Term, per_lane
from blo.errors import StructureError
from blo.sets import NonNegative, Product, Simplex

__all__ = ["exponentials", "lifted"]


def exponentials(term: Term, logarithms: Tensor, solver: str) -> Tensor:
    """Return the point of the set nearest to `exp(logarithms)` in the Kullback-Leibler divergence.

    Every coordinate is at least the smallest positive normal number, so that its logarithm stays finite.

    Args:
        term: the set.
        logarithms: shape `(*lanes, n)`; for a simplex a constant may be added to all of them.
        solver: the name of the solver, for the message.

    Raises:
        StructureError: for any other set and for penalties; the message names the solver.
    """
    if isinstance(term, NonNegative):
        # `exp` underflows to zero, where a multiplicative step could never move the coordinate again.
        return logarithms.exp().clamp(min=torch.finfo(logarithms.dtype).tiny)
    # On a simplex the projection in this divergence is a division by the sum, which `softmax` does without overflow.
    if isinstance(term, Simplex) and term.cap is None:
        return (per_lane(term.total) * logarithms.softmax(-1)).clamp(min=torch.finfo(logarithms.dtype).tiny)
    if isinstance(term, Product) and term.spans is not None:
        parts = zip(term.sets, term.spans, strict=True)
        return torch.cat([exponentials(part, logarithms[..., span], solver) for part, span in parts], -1)
    name = "Simplex with a cap" if isinstance(term, Simplex) else type(term).__name__
    raise StructureError(
        f"`{solver}` needs a set of positive numbers: `Simplex`, `NonNegative` or a `Product` of these, but got "
        f"{name}. Use ProjectedGradient() or FISTA()."
    )


def lifted(term: Term, z: Tensor, solver: str) -> Tensor:
    """Return a point of the set near z whose coordinates are all positive.

    Multiplicative steps never move a coordinate away from zero. So a coordinate that is zero is set to `sqrt(eps)`
    times the largest one, or times 1.
    """
    near = term.prox(z, 1.0)
    top = near.amax(-1, keepdim=True)
    floor = torch.finfo(z.dtype).eps ** 0.5 * torch.where(top > 0, top, 1.0)
    return exponentials(term, torch.where(near > 0, near, floor).log(), solver)
