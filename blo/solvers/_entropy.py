"""Points of sets of positive numbers from their logarithms, for mirror descent with the entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._term import Term
from blo.errors import StructureError

__all__ = ["from_logarithms", "lifted"]


def from_logarithms(term: Term, logarithms: Tensor) -> Tensor:
    """Return `Term.from_logarithms`, a tensor like `logarithms`.

    Raises:
        StructureError: for sets without this map and for penalties.
    """
    found = term.from_logarithms(logarithms)
    if found is None:
        raise StructureError(
            "`MirrorDescent` needs a set of positive numbers: `Simplex` without a cap, `NonNegative`, a `Product` of "
            f"these, or a set that defines `from_logarithms`, but got {type(term).__name__}. Use ProjectedGradient() "
            "or FISTA()."
        )
    return found


def lifted(term: Term, z: Tensor) -> Tensor:
    """Return a point of the set near z whose coordinates are all positive.

    Multiplicative steps never move a coordinate away from zero. So a coordinate that is zero is set to `sqrt(eps)`
    times the largest one, or times 1.
    """
    near = term.prox(z, 1.0)
    top = near.amax(-1, keepdim=True)
    floor = torch.finfo(z.dtype).eps ** 0.5 * torch.where(top > 0, top, 1.0)
    return from_logarithms(term, torch.where(near > 0, near, floor).log())
