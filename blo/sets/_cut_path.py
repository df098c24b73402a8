"""Balls cut by bounds: the search for the nearest point, which is the same for both norms.

Relative to the centre, the nearest point lies on a path with one parameter: each coordinate leaves its lower limit,
grows along a line and stops at its upper limit. The norm grows along the path, and is smooth between the breakpoints,
at which a coordinate leaves or stops. The breakpoints are sorted, and bisection finds the two between which the norm
reaches the radius. This is exact, and the number of operations depends only on shapes.

Source: Helgason, Kennington and Lall (Math. Prog. 1980), the continuous quadratic knapsack problem; Croce and Hein
(ICML 2021), Mind the box, for the 1-norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from blo.sets._cut import Cut


class Ray(NamedTuple):
    """A point relative to the centre, all of shape `(*lanes, n)`; negative coordinates are mirrored.

    Attributes:
        offset: the point minus the centre.
        back: where the offset is negative.
        inner, outer: the least and the largest distance from the centre, on the point's side, that the bounds allow;
            negative on the other side.
    """

    offset: Tensor
    back: Tensor
    inner: Tensor
    outer: Tensor

    @classmethod
    def of(cls, cut: Cut, z: Tensor) -> Ray:
        offset = z - cut.center
        none = torch.zeros_like(offset)
        back, lower, upper = offset < 0, none + (cut.low - cut.center), none + (cut.high - cut.center)
        inner, outer = torch.where(back, -upper, lower), torch.where(back, -lower, upper)
        return cls(offset, back, inner, outer)


class Piece(NamedTuple):
    """The piece of the path, between two neighbouring breakpoints, on which the norm reaches the radius.

    Attributes:
        left, right: the breakpoints, shape `(*lanes, 1)`.
        free: coordinates that vary on the piece, `(*lanes, n)`.
        full: those that have reached their upper limit.
    """

    left: Tensor
    right: Tensor
    free: Tensor
    full: Tensor

    @classmethod
    def find(
        cls, early: Tensor, late: Tensor, end: Tensor, within: Callable[[Tensor], Tensor], start: float = 0.0
    ) -> Piece:
        """Search for the piece.

        Args:
            early: where each coordinate leaves its lower limit, in [start, end].
            late: where it reaches its upper limit, likewise, and not before.
            end: shape `(*lanes, 1)`.
            within: t of this shape -> whether the norm is at most the radius there: true at the start, false at the
                end.
            start: where the path begins.
        """
        breaks = torch.cat([early, late], -1).sort(-1).values
        size = breaks.shape[-1]
        first = torch.zeros_like(breaks[..., :1], dtype=torch.int64)
        last = first + size
        # Bisection: `first` becomes the number of breakpoints at which the norm is at most the radius.
        # There are size + 1 outcomes, and ceil(log2(size + 1)) is the bit length of size.
        for _ in range(size.bit_length()):
            middle = (first + last) // 2
            inside = within(breaks.gather(-1, middle.clamp(max=size - 1)))
            first = torch.where(inside, torch.minimum(middle + 1, last), first)
            last = torch.where(inside, last, middle)
        left = torch.where(first > 0, breaks.gather(-1, (first - 1).clamp(min=0)), start)
        right = torch.where(first < size, breaks.gather(-1, first.clamp(max=size - 1)), end)
        return cls(left, right, (early <= left) & (late >= right), late <= left)

    @property
    def middle(self) -> Tensor:
        """The t to use where no coordinate is free, so that every t on the piece is right."""
        return 0.5 * (self.left + self.right)


def place(cut: Cut, ray: Ray, piece: Piece, moved: Tensor) -> Tensor:
    """Return the point whose free coordinates are those of `moved`; the others are at a bound or at the centre."""
    none = torch.zeros_like(moved)  # so that numbers keep the precision of z
    # A coordinate that has not left its lower limit is at a bound, or at the centre if its bounds include that.
    limit = torch.where(ray.back == piece.full, none + cut.low, none + cut.high)
    held = torch.where(piece.full | (ray.inner > 0), limit, none + cut.center)
    nearest: Tensor = torch.where(piece.free, moved, held)
    return cut.box.project(nearest)  # rounding may have moved free coordinates out of their bounds
