"""Balls cut by bounds: their parameters and validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from blo._autodiff import plain
from blo._layout import Layout
from blo._term import fit_coordinates, per_lane
from blo._types import Tree
from blo.errors import InfeasibleError
from blo.sets._box import Box, require_order
from blo.sets._norm import euclidean_norm


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
        """Return the same parameters as constants in another precision."""

        def at(part: Tensor | float) -> Tensor | float:
            return part.detach().to(dtype) if isinstance(part, Tensor) else part

        return Cut(at(self.radius), at(self.center), at(self.low), at(self.high), self.slack)

    def base(self, z: Tensor) -> Tensor:
        """Return the point within the bounds that is nearest to the centre, in the shape of z."""
        return self.box.project(torch.zeros_like(z) + self.center).detach()


def ahead(cut: Cut, z: Tensor, gradient: Tensor) -> tuple[Cut, Tensor, Tensor]:
    """Return the ball, a gradient step from z and its step size, `(*lanes, 1)`, in double precision.

    A solution is the projection of a gradient step of any size from it. This projection gives the ball's multiplier
    even where no coordinate is clear of its bounds. The step is about as long as z, so that neither is lost in the
    rounding of the other.
    """
    wide = z.dtype if z.device.type == "mps" else torch.float64
    cut, z, gradient = cut.constant(wide), z.detach().to(wide), gradient.detach().to(wide)
    span, size = torch.maximum(euclidean_norm(z), euclidean_norm(z - cut.center)), euclidean_norm(gradient)
    step = torch.where(span * size > 0, span / torch.where(size > 0, size, 1.0), 1.0)
    return cut, z - step * gradient, step


def require_bounds(ball: Ball, name: str, *, look: bool) -> None:
    """Raise if bounds cross; see `require_order`."""
    if is_cut(ball):
        require_order(name, *bounds(ball), look=look)


def bounds(ball: Ball) -> tuple[Tree, Tree]:
    """Return both bounds, with an infinite number in place of None."""
    return -math.inf if ball.low is None else ball.low, math.inf if ball.high is None else ball.high


def is_cut(ball: Ball) -> bool:
    """Return whether a ball has bounds; infinite numbers do not count."""
    numbers = (int, float)
    low, high = bounds(ball)
    return not (isinstance(low, numbers) and isinstance(high, numbers) and low == -math.inf and high == math.inf)


def fit_bound(bound: Tree | None, layout: Layout, name: str) -> Tensor | float | None:
    """Return a bound flattened like z; None stays None."""
    return None if bound is None else fit_coordinates(bound, layout, name)


def require_reach(ball: Ball, layout: Layout, name: str, is_empty: Callable[[Cut, Tensor], Tensor]) -> None:
    """Raise if a fitted ball has no point within its bounds.

    Raises:
        InfeasibleError: in that case; the message names `name`.
    """
    require_bounds(ball, name, look=True)
    cut = Cut.of(ball)
    # Parameters that are numbers are tested on the CPU, without a host synchronisation.
    tensors = any(isinstance(part, Tensor) for part in cut)
    shape, device = ((*layout.lanes, layout.size), layout.device) if tensors else ((layout.size,), "cpu")
    empty = is_empty(cut, torch.zeros(shape, dtype=layout.dtype, device=device))
    empty = plain(empty)
    if bool(empty.any()):
        raise InfeasibleError(
            f"`{name}` needs a point within `radius` of `center` and between `low` and `high`, but {int(empty.sum())} "
            f"of {empty.numel()} balls have none. Move the centre towards the bounds, or make the radius larger."
        )
