"""Bounds on each coordinate, and the perturbations that keep an image in its range."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from blo import tree
from blo._layout import Layout
from blo._multipliers import adrift_in_bounds, clear, negligible, unresolved
from blo._term import Carry, Counts, Tangent, can_validate, failing, fit_coordinates
from blo._types import Tree
from blo.errors import InfeasibleError, StructureError
from blo.sets._base import Set
from blo.sets._rows import Rows


@dataclass(frozen=True, eq=False)
class Box(Set):
    """`{ z : low <= z <= high }`.

    Attributes:
        low: a number, a tensor of z's shape, or a tree like z; `-inf` leaves a coordinate open.
        high: likewise.
        slack: a coordinate further than this from both bounds is free. A coordinate nearer to a bound is free unless
            the gradient presses it against that bound with at least the size of the distance. Absolute, in z's unit.
        validate: raise if tensor bounds cross, which is one host synchronisation on an accelerator.
        coordinates: number of coordinates of z; `fit` sets it.

    Raises:
        InfeasibleError: if a lower bound exceeds its upper bound, or one of them is NaN.
        StructureError: if a bound is None; when the problem is solved, if a bound does not fit z.
        ValueError: when the problem is solved, if `slack` is negative.
    """

    low: Tree
    high: Tree
    slack: float = 1e-7
    validate: bool = True
    coordinates: int | None = None

    def __post_init__(self) -> None:
        if self.low is None or self.high is None:
            raise StructureError("`Box` needs two bounds, but one is None. Leave a side open with -inf or inf.")
        require_order("Box", self.low, self.high, look=self.validate)

    @classmethod
    def around(
        cls,
        x: Tree,
        radius: Tree,
        low: Tree,
        high: Tree,
        *,
        slack: float = 1e-7,
        validate: bool = True,
    ) -> Box:
        """Return `{ z : |z| <= radius and low <= x + z <= high }`, the perturbations z of x.

        Args:
            x: a tensor of z's shape or a tree like z, within [low, high].
            radius: largest change of a coordinate: a number, a tensor, or a tree like x.
            low: least value of a coordinate of x + z: a number, a tensor, or a tree like x.
            high: greatest value, likewise.
            slack: as in `Box`.
            validate: as in `Box`.

        Raises:
            InfeasibleError: if x lies further than `radius` outside [low, high].
        """

        def spread(value: Tree) -> Tree:
            return tree.map(lambda _: value, x) if isinstance(value, int | float | Tensor) else value

        # max(low - x, -radius) <= z <= min(high - x, radius).
        radius = spread(radius)
        lower = tree.map(lambda at, r, end: torch.clamp(end - at, min=-r), x, radius, spread(low))
        upper = tree.map(lambda at, r, end: torch.clamp(end - at, max=r), x, radius, spread(high))
        return cls(lower, upper, slack=slack, validate=validate)

    def fit(self, layout: Layout) -> Box:
        low, high = fit_coordinates(self.low, layout, "Box.low"), fit_coordinates(self.high, layout, "Box.high")
        return replace(
            self,
            low=low,
            high=high,
            coordinates=layout.size,
            validate=self.validate and self._holds_tree(),  # tensors were validated when the box was made
        )

    @cached_property
    def extent(self) -> Tensor | float | None:
        """An upper bound of the diagonal, computed on first use: a fixed number of steps does not need it."""
        if self.coordinates is None:
            return None
        width = self.high - self.low
        widest: Tensor | float = width.detach().amax(-1, keepdim=True) if isinstance(width, Tensor) else width
        return widest * math.sqrt(self.coordinates)

    def project(self, z: Tensor) -> Tensor:
        # Two clamps: a single one cannot take a number and a tensor, and loses the derivative where low == high.
        nearest: Tensor = z.clamp(min=self.low).clamp(max=self.high)
        return nearest

    def rows(self, layout: Layout) -> Rows:
        return Rows.bounds(layout, self.low, self.high)

    @property
    def rounds(self) -> bool:
        return False

    def retreat(self, z: Tensor, move: Tensor, step: Tensor | float) -> Tensor:
        # z - project(z - move), without z - move, which would round off a move that is short compared with z.
        return torch.maximum(torch.minimum(move, z - self.low), z - self.high)

    def bounds(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        return self.low, self.high

    def free(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Return which coordinates lie strictly inside, booleans of z's shape."""
        return clear(z - self.low, gradient, self.slack) & clear(self.high - z, -gradient, self.slack)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        free = self.free(z, gradient)

        def count() -> Counts:
            # Where low == high the bounds determine z, and the multiplier does not matter.
            open_ = torch.as_tensor(self.low < self.high, device=z.device)
            above, below = z - self.low, self.high - z
            near = torch.minimum(above, below)
            # At an exact solution the gradient is zero on inner coordinates, so its size there is the accuracy of the
            # multipliers. Coordinates at a bound, even free ones, are compared with this accuracy and do not add to it.
            inner = free & (near > 0)
            undecided = ~inner & negligible(gradient, gradient, gradient * inner)
            undecided = undecided | unresolved(near, gradient, self.slack, z)
            undecided = open_ & (undecided | adrift_in_bounds(above, below, gradient, self.slack, z))
            inside = free.sum(-1)
            return Counts(inside, z.shape[-1] - inside, undecided.sum(-1))

        # Multiply instead of selecting, so that a NaN in v stays visible. A mask of numbers is faster than booleans.
        mask = free.to(z.dtype)

        def motion(term: Box, at: Tensor) -> Tensor:
            return torch.where(free, 0.0, term._carried(self, at, gradient))

        def duals(layout: Layout) -> dict[str, Tree]:
            return dual_bounds(gradient, ~free, layout)

        return Tangent(lambda v: v * mask, 0.0, count, motion=Carry(Box.motion, motion), duals=duals, selects=True)

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        return self._carried(origin, z, torch.zeros_like(z))

    def _carried(self, origin: Self, z: Tensor, gradient: Tensor) -> Tensor:
        none, above, below = torch.zeros_like(z), z - origin.low, origin.high - z
        near_low, near_high = above <= origin.slack, below <= origin.slack
        # If both bounds are within the slack, z follows the one against which it is pressed; without a force, the
        # nearer one, or the mean of both. Then a box of radius zero moves z with its centre, but not with its radius.
        push = torch.where(gradient == 0, above - below, -gradient).sign()
        share = torch.where(near_low & near_high, 0.5 * (1 + push), near_high.to(z.dtype))
        up = torch.where(near_high, self.high - origin.high, none)
        down = torch.where(near_low, self.low - origin.low, none)
        return share * up + (1 - share) * down

    def _holds_tree(self) -> bool:
        return not all(isinstance(bound, int | float | Tensor) for bound in (self.low, self.high))


def dual_bounds(gradient: Tensor, held: Tensor, layout: Layout) -> dict[str, Tree]:
    """Return the multipliers of lower and upper bounds, trees like z.

    Args:
        gradient: the part of the gradient that the bounds balance, shape `(*lanes, n)`.
        held: which coordinates are at a bound, booleans of the same shape.
        layout: that of z.
    """
    low, high = (torch.where(held & (side > 0), side, 0.0) for side in (gradient, -gradient))
    return {"low": layout.unravel(low), "high": layout.unravel(high)}


def require_order(name: str, low: Tree, high: Tree, *, look: bool) -> None:
    """Raise if bounds cross.

    Args:
        name: of the set.
        low: the lower bounds; trees are not checked.
        high: the upper bounds, likewise.
        look: whether to read the values of tensors.

    Raises:
        InfeasibleError: if a lower bound exceeds its upper bound, or one of them is NaN.
    """
    numbers = (int, float)
    if isinstance(low, numbers) and isinstance(high, numbers):
        if low <= high:
            return  # make no tensor: `NonNegative` makes a box for each projection
        crossed = torch.ones(1, dtype=torch.bool, device="cpu")
    elif look and can_validate() and all(isinstance(bound, int | float | Tensor) for bound in (low, high)):
        crossed = failing(low <= high)
    else:
        return
    if bool(crossed.any()):
        raise InfeasibleError(
            f"`{name}` needs low <= high everywhere, but {int(crossed.sum())} of {crossed.numel()} "
            "coordinates cross or are NaN. If the bounds come from `Box.around`, or x was subtracted from them, check "
            "that x already lies in [low, high]."
        )
