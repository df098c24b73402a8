"""The lower and upper bound of each coordinate, for sets that bound the coordinates independently."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blo._term import Term
from blo.errors import StructureError
from blo.sets import Box, Free, NonNegative, Product

__all__ = ["bounds"]


def bounds(term: Term, z: Tensor, solver: str) -> tuple[Tensor, Tensor] | None:
    """Return the lower and upper bounds, broadcast to z; None if the problem has no constraint.

    Raises:
        StructureError: for any other set and for penalties; the message names the solver.
    """
    if isinstance(term, Free):
        return None
    if isinstance(term, NonNegative):
        return bounds(term.box, z, solver)
    if isinstance(term, Box):
        return _like(term.low, z), _like(term.high, z)
    if isinstance(term, Product) and term.spans is not None:
        parts = []
        for part, span in zip(term.sets, term.spans, strict=True):
            block = z[..., span]
            # `Free` has no bounds, but its coordinates need entries next to those of the other factors.
            everywhere = torch.full_like(block, -math.inf), torch.full_like(block, math.inf)
            parts.append(bounds(part, block, solver) or everywhere)
        low, high = zip(*parts, strict=True)
        return torch.cat(low, dim=-1), torch.cat(high, dim=-1)
    raise StructureError(
        f"`{solver}` needs a set that bounds each coordinate by itself: `Free`, `Box`, `NonNegative` or a `Product` of "
        f"these, but got {type(term).__name__}. Use ProjectedGradient() or FISTA()."
    )


def _like(bound: Tensor | float, z: Tensor) -> Tensor:
    return bound.expand_as(z) if isinstance(bound, Tensor) else torch.full_like(z, bound)
