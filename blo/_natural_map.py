"""The natural map of first-order optimality, whose length is the residual of a lower problem."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._term import Term, small_extent
from blo._vectors import length
from blo.sets import Free

__all__ = ["natural", "residual", "scale"]

#: The shortest step of the natural map, relative to z, as a power of machine epsilon.
_REACH = 0.25
#: In a small set, the shortest step relative to its extent, and relative to z as a power of machine epsilon.
_INSIDE, _ROUNDED = 1e-3, 0.75
#: The longest step of the natural map, relative to z, and the smallest length of z in this comparison.
_LONG, _TINY = 1e6, 1e-7


def scale(term: Term, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
    """Return the unit in which the natural map is computed, shape `(*lanes, 1)`.

    This is the given unit, or 1 if it is None, except where the step `slope / unit` would be too short or too long.
    There it is the nearest unit with a step of suitable length.
    """
    if isinstance(term, Free):
        # Without a term the natural map is the gradient, whatever the unit.
        return torch.ones_like(slope[..., :1])
    size, far = length(slope), length(z)
    unit = torch.ones_like(size) if unit is None else unit
    extent = small_extent(term, slope)
    if term.rounds:
        # Rounding of z would destroy most digits of a step that is short relative to z.
        eps = torch.finfo(z.dtype).eps
        # Rounding z by eps |z| changes such a step by a share of eps^(3/4).
        least = eps**_REACH * far
        if extent is not None:
            # Far from zero, a step in a small set should still be short compared with the set.
            least = torch.minimum(least, torch.maximum(_INSIDE * extent, eps**_ROUNDED * far))
        most = torch.where((size > 0) & (least > 0), size / torch.where(least > 0, least, 1.0), torch.inf)
        unit = torch.minimum(unit, most)
    # A very long step ends on the opposite side of the set from every start, so it does not measure optimality.
    unit = torch.maximum(unit, size / (_LONG * far.clamp(min=_TINY)))
    if extent is None:
        return unit
    # All points of a small set are close to each other, so a step that leaves the set gives a small residual
    # everywhere. A step of at most the extent of the set shows the distance to a solution.
    return torch.maximum(unit, size / extent)


def natural(term: Term, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
    """Return `unit (z - prox(z - slope / unit))`, the natural map of first-order optimality, shape `(*lanes, n)`."""
    if isinstance(term, Free):
        return slope  # multiplying and dividing by the unit would only add rounding errors
    # The step 1 / unit scales gradient and term alike: `z = prox(z - s slope, s)` has the same solutions for all s > 0.
    return unit * term.retreat(z, slope / unit, 1 / unit)


def residual(term: Term, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
    """Return the length of the natural map, shape `lanes`: zero exactly at stationary points."""
    free = isinstance(term, Free)
    return length(slope if free else natural(term, z, slope, scale(term, z, slope, unit)), keepdim=False)
