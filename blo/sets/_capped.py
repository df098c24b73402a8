"""The simplex with an upper bound, the cap, on each coordinate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from blo._layout import Layout
from blo._multipliers import clear, negligible, unresolved
from blo._term import Carry, Counts, Strain, Tangent, per_lane
from blo._types import Tree
from blo._vectors import dot
from blo.sets._box import dual_bounds
from blo.sets._knapsack import Knapsack
from blo.sets._norm import euclidean_norm


class Bounded(Protocol):
    """The parameters of a simplex with caps, flat."""

    @property
    def total(self) -> Tensor | float: ...
    @property
    def cap(self) -> Tensor | float | None: ...
    @property
    def slack(self) -> float: ...


class Capped(NamedTuple):
    """A simplex with caps.

    Attributes:
        total: a number or shape `(*lanes, 1)`.
        cap: a number or shape `(*lanes, n)`.
        slack: see `Simplex`.
    """

    total: Tensor | float
    cap: Tensor | float
    slack: float

    @classmethod
    def of(cls, simplex: Bounded) -> Capped:
        assert simplex.cap is not None
        return cls(per_lane(simplex.total), simplex.cap, simplex.slack)

    def constant(self, dtype: torch.dtype) -> Capped:
        """Return the same parameters as constants in another precision."""
        total, cap = (p.detach().to(dtype) if isinstance(p, Tensor) else p for p in (self.total, self.cap))
        return Capped(total, cap, self.slack)

    def room(self, z: Tensor) -> Tensor:
        """Return how far below its cap each coordinate is, shape `(*lanes, n)`."""
        return self.cap - z

    def sack(self, z: Tensor) -> Knapsack:
        """Return the bounds and the sum as a `Knapsack`, in the shape of z."""
        none, one = torch.zeros_like(z), torch.ones_like(z)
        total = none[..., :1] + self.total
        return Knapsack(none, none + self.cap, one, total, one[..., :1].bool())

    def fill(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest point to z, and the common shift of its free coordinates, `(*lanes, 1)`.

        The point is NaN where the caps add up to less than the total.
        """
        # A common shift of z does not change the nearest point. Without it, the rounding of a large z swamps the total.
        top = z.detach().amax(-1, keepdim=True)
        found = self.sack(z).fill(z - top)
        return found.point, found.level - top


def tangent(capped: Capped, z: Tensor, gradient: Tensor, instead: Callable[..., Tensor]) -> Tangent:
    """Return the tangent space at a solution; `instead` as in `Carry`."""
    room, level = capped.room(z), _level(capped, z, gradient)
    pressed = gradient - level
    free = clear(z, pressed, capped.slack) & clear(room, -pressed, capped.slack)
    # The sign of the multiplier tells the bound that holds a coordinate; at zero, it is the nearer one.
    face = _Face(capped, z, free, ~free & ((pressed < 0) | ((pressed == 0) & (room < z))))

    def count() -> Counts:
        inner = free & (z > 0) & (room > 0)
        loose = ~inner & negligible(pressed, gradient, face.project(gradient) * inner)
        loose = loose | unresolved(z, pressed, capped.slack, z) | unresolved(room, -pressed, capped.slack, z)
        loose = loose & torch.as_tensor(capped.cap > 0, device=z.device)  # a coordinate with cap 0 is not degenerate
        move = (free.sum(-1) - 1).clamp(min=0)
        return Counts(move, z.shape[-1] - move, loose.sum(-1))

    def motion(term: Bounded, at: Tensor) -> Tensor:
        return face.motion(Capped.of(term))

    def duals(layout: Layout) -> dict[str, Tree]:
        found = dual_bounds(pressed, ~free, layout)
        return {"total": -level.squeeze(-1), "low": found["low"], "cap": found["high"]}

    strain = Strain(face.surplus, lambda term, at: face.strain(Capped.of(term)))
    return Tangent(face.project, 0.0, count, motion=Carry(instead, motion), strain=strain, duals=duals)


def motion(capped: Capped, origin: Capped, z: Tensor) -> Tensor:
    """Return how far z moves with the constraints within the slack when `origin` becomes `capped`."""
    room = origin.room(z)
    upper = (room <= origin.slack) & (room < z)
    return _Face(origin, z, (z > origin.slack) & ~upper, upper).motion(capped)


def _level(capped: Capped, z: Tensor, gradient: Tensor) -> Tensor:
    """Return the multiplier of the sum, `(*lanes, 1)`: the mean gradient of the free coordinates."""
    inside = (z > capped.slack) & (capped.room(z) > capped.slack)
    # If no coordinate is clear of its bounds, the projection of a gradient step from z gives the multiplier: its common
    # shift over the step size. The step is about as long as z, so that neither is lost in the rounding of the other.
    # MPS has no double precision.
    wide = z.dtype if z.device.type == "mps" else torch.float64
    at, slope = z.detach().to(wide), gradient.detach().to(wide)
    span, size = euclidean_norm(at), euclidean_norm(slope)
    step = torch.where(span * size > 0, span / torch.where(size > 0, size, 1.0), 1.0)
    rough = (capped.constant(wide).fill(at - step * slope)[1] / step).to(z.dtype)
    number = inside.sum(-1, keepdim=True)
    mean = dot(gradient, inside) / number.clamp(min=1)
    return torch.where(number > 0, mean, rough)


@dataclass(frozen=True, eq=False)
class _Face:
    """The face of the simplex that contains a solution.

    Attributes:
        capped: the simplex.
        z: the solution, shape `(*lanes, n)`.
        free: coordinates between their bounds, booleans of shape `(*lanes, n)`.
        upper: coordinates at their cap; the others are at zero.
    """

    capped: Capped
    z: Tensor
    free: Tensor
    upper: Tensor

    @property
    def size(self) -> Tensor:
        return self.free.sum(-1, keepdim=True).clamp(min=1)

    def project(self, v: Tensor) -> Tensor:
        """Return the part of v that is zero off the free coordinates and sums to zero."""
        return (v - dot(v, self.free) / self.size) * self.free

    def motion(self, capped: Capped) -> Tensor:
        """Return the motion of z: coordinates at a cap follow it, and the free ones share the rest of the total."""
        moved, left = self._moves(capped)
        return torch.where(self.free, left / self.size, moved)

    def surplus(self) -> Tensor:
        """Return 1 where no coordinate is free, so that the sum depends on the bounds, else 0; shape `lanes`."""
        return (~self.free.any(-1)).long()

    def strain(self, capped: Capped) -> tuple[Tensor, Tensor]:
        """Return the motion of the constraints, and the part of it that z cannot follow.

        Without a free coordinate, that is the change of the total which the caps do not make up.
        """
        moved, left = self._moves(capped)
        total = torch.zeros_like(left) + (capped.total - self.capped.total)
        apart = torch.where(self.free.any(-1, keepdim=True), 0.0, left)
        return torch.cat([moved, total], -1), torch.cat([torch.zeros_like(moved), apart], -1)

    def _moves(self, capped: Capped) -> tuple[Tensor, Tensor]:
        moved = torch.where(self.upper, torch.zeros_like(self.z) + (capped.cap - self.capped.cap), 0.0)
        return moved, (capped.total - self.capped.total) - moved.sum(-1, keepdim=True)
