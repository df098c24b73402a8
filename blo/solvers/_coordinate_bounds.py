"""Sets that bound each coordinate by itself, as bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blo._term import Term
from blo.errors import StructureError
from blo.sets import Box, Free, NonNegative, Product

__all__ = ["bounds"]


def bounds(term: Term, z: Tensor, solver: str) -> tuple[Tensor, Tensor] | None:
    """Return the least and greatest value of each coordinate, broadcast to z; None where nothing is bounded.

    Raises:
        StructureError: naming the solver, for any other set and for penalties.
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
            everywhere = torch.full_like(block, -math.inf), torch.full_like(block, math.inf)
            parts.append(bounds(part, block, solver) or everywhere)
        low, high = zip(*parts, strict=True)
        return torch.cat(low, dim=-1), torch.cat(high, dim=-1)
    raise StructureError(
        f"`{solver}` bounds each coordinate by itself, so it takes `Free`, `Box`, `NonNegative` and a `Product` of "
        f"these, but got {type(term).__name__}. Use ProjectedGradient() or FISTA()."
    )


def _like(bound: Tensor | float, z: Tensor) -> Tensor:
    return bound.expand_as(z) if isinstance(bound, Tensor) else torch.full_like(z, bound)
