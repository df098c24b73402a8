"""The nearest point within bounds with a given weighted sum: capped simplices, budgets, and half-spaces of this form.

Along the normal of the sum, each coordinate leaves one of its bounds, moves along a line and stops at the other one.
The breakpoints, at which it leaves and stops, are sorted, and bisection finds the two between which the sum is right.
This is exact, and the number of operations depends only on shapes.

Source: Helgason, Kennington and Lall (Math. Prog. 1980), the continuous quadratic knapsack problem.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blo._vectors import dot
from blo.sets._cut_path import Piece

#: Units of rounding by which a sum may miss what the bounds allow.
_ROUNDING = 64


class Filled(NamedTuple):
    """The nearest point `z + level row`, within bounds.

    Attributes:
        point: shape `(*lanes, n)`; NaN where there is none.
        level: shape `(*lanes, 1)`; where no coordinate is free, one of those that give the same point.
        empty: shape `(*lanes, 1)`: no point within the bounds has the sum, or z or a bound is NaN.
    """

    point: Tensor
    level: Tensor
    empty: Tensor


class Knapsack(NamedTuple):
    """`{ z : low <= z <= high, row z = right }`, or `row z <= right`.

    Attributes:
        low: shape `(*lanes, n)`; `-inf` leaves a side open.
        high: likewise.
        row: same shape.
        right: shape `(*lanes, 1)`.
        equal: whether the sum is an equation, booleans of this shape.
    """

    low: Tensor
    high: Tensor
    row: Tensor
    right: Tensor
    equal: Tensor

    def fill(self, z: Tensor) -> Filled:
        """Return the nearest point to z, differentiable in z and in all parameters."""
        low, high, row, right = (part.detach() for part in self[:4])
        at, rises, idle = z.detach(), row > 0, row == 0
        slope = torch.where(idle, 1.0, row)
        begin, end = torch.where(rises, low, high), torch.where(rises, high, low)
        early = torch.where(idle, torch.inf, (begin - at) / slope)
        late = torch.where(idle, torch.inf, (end - at) / slope)

        # At a breakpoint the sum equals `right` up to rounding; without this margin the search may stop too early.
        limit = right + 4 * torch.finfo(row.dtype).eps * right.abs()

        def within(t: Tensor) -> Tensor:
            # At the infinite ends of the path the answer is known, and 0 times infinity would be NaN.
            found = _sum(row, (at + row * torch.where(t.isinf(), 0.0, t)).clamp(min=low).clamp(max=high)) <= limit
            return torch.where(t.isinf(), t < 0, found)

        piece = Piece.find(early, late, torch.full_like(right + at[..., :1], torch.inf), within, -torch.inf)
        # If a coordinate is far from its bounds, rounding may make its two breakpoints equal: it is free between them.
        short = (early == late) & (early == piece.left)
        full = piece.full & ~short
        # Where bounds alone make up the sum, it is constant from one breakpoint to the next, and nothing is free.
        rest = right - _sum(row, torch.where(idle, 0.0, torch.where(full, end, begin)))
        moving = ((early < piece.left) & (late > piece.left)).any(-1, keepdim=True)
        tied = ~moving & (rest <= limit - right)
        free = (piece.free | short) & (low < high) & ~(idle | tied)
        inside = z.clamp(min=self.low).clamp(max=self.high)
        # A coordinate that rises with the level goes from `low` to `high`, one that falls from `high` to `low`.
        held = torch.where(idle, inside, torch.where(rises == full, self.high, self.low))
        square = _sum(self.row, torch.where(free, self.row, 0.0))
        some = square > 0

        def level_from(point: Tensor) -> Tensor:
            left = self.right - _sum(self.row, torch.where(idle, 0.0, torch.where(free, point, held)))
            return left / torch.where(some, square, 1.0)

        # Recompute the level from the free coordinates, so that only smooth operations are differentiated:
        # row (z + level row) = right, with the held coordinates at their bounds. Then repeat it from near the answer,
        # since the rounding of a large z swamps a small sum.
        level = torch.where(some, level_from(z), _between(piece, early, late))
        near = z + self.row * level.detach()
        moved = torch.where(free, near + self.row * level_from(near), held).clamp(min=self.low).clamp(max=self.high)
        rests = ~self.equal & (_sum(row, inside.detach()) <= right)
        empty = self.empty(at)
        point = torch.where(empty, torch.nan, torch.where(rests, inside, moved))
        return Filled(point, torch.where(rests, 0.0, level), empty)

    def empty(self, z: Tensor) -> Tensor:
        """Return in which lanes there is no such point, or a parameter is NaN, shape `(*lanes, 1)`."""
        low, high, row, right = (part.detach() for part in self[:4])
        ends = torch.where(row == 0, 0.0, row * low), torch.where(row == 0, 0.0, row * high)
        least, most = torch.minimum(*ends).sum(-1, keepdim=True), torch.maximum(*ends).sum(-1, keepdim=True)
        unit = _ROUNDING * torch.finfo(row.dtype).eps
        size = unit * (torch.where(torch.isfinite(ends[0] + ends[1]), ends[0].abs() + ends[1].abs(), 0.0))
        room = size.sum(-1, keepdim=True) + unit * right.abs()
        crossed = ~(low <= high + unit * torch.where(torch.isfinite(low), low.abs(), 0.0)).all(-1, keepdim=True)
        reached = (least <= right + room) & ((right <= most + room) | ~self.equal)
        return crossed | ~reached | z.isnan().any(-1, keepdim=True)


def _sum(row: Tensor, z: Tensor) -> Tensor:
    return dot(row, z)


def _between(piece: Piece, early: Tensor, late: Tensor) -> Tensor:
    """Return a level at which the sum is the same as at the left end of the piece, and stays so nearby."""
    left = piece.left
    before = torch.maximum(*(torch.where(at < left, at, -torch.inf).amax(-1, keepdim=True) for at in (early, late)))
    beside = left.abs().clamp(min=1.0)
    found = torch.where(before.isinf(), left - beside, 0.5 * (before + left))
    found = torch.where(piece.right.isinf(), left + beside, found)
    return torch.where(found.isfinite(), found, 0.0)
