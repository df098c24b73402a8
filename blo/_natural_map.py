"""The natural map of first-order optimality, whose length is the residual of a lower problem."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import length
from blo._term import Term
from blo.sets import Free

__all__ = ["natural", "residual", "scale"]

#: Extent of a set below which a residual in the unit of z says nothing: a solver may accept as much.
_SMALL = 1e-3
#: Power of the unit of rounding that a step has at least, beside z, in which optimality is looked at.
_REACH = 0.25
#: The longest step, in units of z, and the least z that is a unit.
_LONG, _TINY = 1e6, 1e-7


def scale(term: Term, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
    """Return the unit, 1 if None, or the nearest one in which the natural map tells something, `(*lanes, 1)`."""
    if isinstance(term, Free):
        return torch.ones_like(slope[..., :1])
    size, far = length(slope), length(z)
    unit = torch.ones_like(size) if unit is None else unit
    if term.rounds:
        # A step that is short beside z would be lost, or most of it, in the rounding of z.
        least = torch.finfo(z.dtype).eps ** _REACH * far
        most = torch.where((size > 0) & (least > 0), size / torch.where(least > 0, least, 1.0), torch.inf)
        unit = torch.minimum(unit, most)
    # A very long one ends on the other side of the set, wherever it starts.
    unit = torch.maximum(unit, size / (_LONG * far.clamp(min=_TINY)))
    if term.extent is None:
        return unit
    # Of a small set every point is near every other: a step that leads out of it shows no distance to a solution.
    extent = torch.as_tensor(term.extent, device=slope.device)
    small = (extent > 0) & (extent < _SMALL)
    return torch.maximum(unit, torch.where(small, size / torch.where(small, extent, 1.0), 0.0).to(slope.dtype))


def natural(term: Term, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
    """Return `unit (z - prox(z - slope / unit))`, the natural map of first-order optimality, shape `(*lanes, n)`."""
    if isinstance(term, Free):
        return slope  # of which a unit would take the last bit
    return unit * term.retreat(z, slope / unit, 1 / unit)


def residual(term: Term, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
    """Return the length of the natural map, shape `lanes`: zero exactly at stationary points."""
    return length(natural(term, z, slope, scale(term, z, slope, unit))).squeeze(-1)
