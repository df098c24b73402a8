"""Balls cut by bounds: the search for the nearest point, which is one and the same for both norms.

Seen from the centre, the nearest point lies on a path of one parameter: each coordinate leaves its lower limit, grows
along a line and stops at its upper limit. The norm grows along the path, and is smooth between the places where a
coordinate leaves or stops. These are sorted, and the two between which the norm passes the radius are found by
bisection: exactly, in a number of operations that depends on shapes alone.

Source: Helgason, Kennington and Lall (Math. Prog. 1980), the continuous quadratic knapsack problem; Croce and Hein
(ICML 2021), Mind the box, for the 1-norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from blo._layout import Layout
from blo._term import fit_coordinates, per_lane
from blo._types import Tree
from blo.errors import InfeasibleError
from blo.sets._box import Box, require_order


class Ball(Protocol):
    """The parameters of a ball; bounds that are None are open."""

    @property
    def radius(self) -> Tensor | float: ...
    @property
    def center(self) -> Tree: ...
    @property
    def low(self) -> Tree | None: ...
    @property
    def high(self) -> Tree | None: ...
    @property
    def slack(self) -> float: ...


class Cut(NamedTuple):
    """A ball cut by bounds, its parameters flat.

    Attributes:
        radius: a number or shape `(*lanes, 1)`.
        center, low, high: numbers or shape `(*lanes, n)`.
        slack: see the balls.
    """

    radius: Tensor | float
    center: Tensor | float
    low: Tensor | float
    high: Tensor | float
    slack: float

    @classmethod
    def of(cls, ball: Ball) -> Cut:
        low, high = bounds(ball)
        return cls(per_lane(ball.radius), ball.center, low, high, ball.slack)

    @property
    def box(self) -> Box:
        return Box(self.low, self.high, slack=self.slack, validate=False)

    def constant(self, dtype: torch.dtype) -> Cut:
        """Return the same as constants of another precision."""
        return Cut(*(part.detach().to(dtype) if isinstance(part, Tensor) else part for part in self))

    def base(self, z: Tensor) -> Tensor:
        """Return the point within the bounds that is nearest to the centre, in the shape of z."""
        return self.box.project(torch.zeros_like(z) + self.center).detach()


class Ray(NamedTuple):
    """A point seen from the centre, all shape `(*lanes, n)`; coordinates behind it are mirrored.

    Attributes:
        offset: the point less the centre.
        back: where it is negative.
        inner, outer: how far the bounds let the coordinate be from the centre on the point's side; negative for places
            on the other side.
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
    """Where the path passes the radius: between two neighbouring breaks.

    Attributes:
        left, right: the breaks, shape `(*lanes, 1)`.
        free: coordinates that are on their line there, `(*lanes, n)`.
        full: those that have come to their upper limit.
    """

    left: Tensor
    right: Tensor
    free: Tensor
    full: Tensor

    @classmethod
    def find(cls, early: Tensor, late: Tensor, end: Tensor, within: Callable[[Tensor], Tensor]) -> Piece:
        """Search for the piece.

        Args:
            early: where each coordinate leaves its lower limit, in [0, end].
            late: where it comes to its upper limit, likewise, and not before.
            end: shape `(*lanes, 1)`.
            within: t of this shape -> whether the norm is at most the radius there: true at 0, false at the end.
        """
        breaks = torch.cat([early, late], -1).sort(-1).values
        size = breaks.shape[-1]
        first = torch.zeros_like(breaks[..., :1], dtype=torch.int64)
        last = first + size
        for _ in range(size.bit_length()):
            middle = (first + last) // 2
            inside = within(breaks.gather(-1, middle.clamp(max=size - 1)))
            first = torch.where(inside, torch.minimum(middle + 1, last), first)
            last = torch.where(inside, last, middle)
        left = torch.where(first > 0, breaks.gather(-1, (first - 1).clamp(min=0)), 0.0)
        right = torch.where(first < size, breaks.gather(-1, first.clamp(max=size - 1)), end)
        return cls(left, right, (early <= left) & (late >= right), late <= left)

    @property
    def middle(self) -> Tensor:
        """What to take where no coordinate is free, and every t between the breaks is right."""
        return 0.5 * (self.left + self.right)


def place(cut: Cut, ray: Ray, piece: Piece, moved: Tensor) -> Tensor:
    """Return the point whose free coordinates are those of `moved`; the others are at a bound or at the centre."""
    none = torch.zeros_like(moved)  # so that numbers keep the precision of z
    limit = torch.where(ray.back == piece.full, none + cut.low, none + cut.high)
    held = torch.where(piece.full | (ray.inner > 0), limit, none + cut.center)
    nearest: Tensor = torch.where(piece.free, moved, held)
    return cut.box.project(nearest)  # free coordinates may be off by rounding


def require_bounds(ball: Ball, name: str, *, look: bool) -> None:
    """Refuse bounds that cross; see `require_order`."""
    if is_cut(ball):
        require_order(name, *bounds(ball), look=look)


def bounds(ball: Ball) -> tuple[Tree, Tree]:
    """Return both bounds, those that are None as numbers."""
    return -math.inf if ball.low is None else ball.low, math.inf if ball.high is None else ball.high


def is_cut(ball: Ball) -> bool:
    """Tell whether a ball has bounds; infinite numbers are none."""
    numbers = (int, float)
    low, high = bounds(ball)
    return not (isinstance(low, numbers) and isinstance(high, numbers) and low == -math.inf and high == math.inf)


def fit_bounds(ball: Ball, layout: Layout, name: str) -> dict[str, Tensor | float | None]:
    """Return the bounds of a ball flattened like z."""
    pairs = [("low", ball.low), ("high", ball.high)]
    return {key: None if side is None else fit_coordinates(side, layout, f"{name}.{key}") for key, side in pairs}


def require_reach(ball: Ball, layout: Layout, name: str, is_empty: Callable[[Cut, Tensor], Tensor]) -> None:
    """Refuse a fitted ball that has no point within its bounds.

    Raises:
        InfeasibleError: naming `name`.
    """
    require_bounds(ball, name, look=True)
    cut = Cut.of(ball)
    # Numbers are looked at on the CPU, which waits for nothing.
    tensors = any(isinstance(part, Tensor) for part in cut)
    shape, device = ((*layout.lanes, layout.size), layout.device) if tensors else ((layout.size,), "cpu")
    empty = is_empty(cut, torch.zeros(shape, dtype=layout.dtype, device=device))
    if bool(empty.any()):
        raise InfeasibleError(
            f"`{name}` needs a point within `radius` of `center` and between `low` and `high`, but {int(empty.sum())} "
            f"of {empty.numel()} balls have none. Move the centre to its bounds, or make the radius larger."
        )
