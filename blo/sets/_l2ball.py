"""The Euclidean ball, whose boundary is curved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from blo._layout import Layout
from blo._multipliers import clear, negligible, unresolved
from blo._term import Carry, Counts, Tangent, can_validate, failing, fit_coordinates, fit_per_lane, per_lane
from blo._types import Tree
from blo._vectors import dot
from blo.errors import InfeasibleError
from blo.sets import _cut_l2
from blo.sets._base import Set
from blo.sets._cut import Cut, fit_bound, is_cut, require_bounds, require_reach
from blo.sets._norm import euclidean_norm


@dataclass(frozen=True, eq=False)
class L2Ball(Set):
    """`{ z : |z - center|_2 <= radius, low <= z <= high }`, the norm running over all of z (of each lane).

    Source: with bounds, Helgason, Kennington and Lall (Math. Prog. 1980), the continuous quadratic knapsack problem.

    Attributes:
        radius: a number, or a tensor of shape `()` or `lanes`.
        center: a number, a tensor of z's shape, or a tree like z.
        low: as in `Box`, with the same rule for active bounds; None, like `-inf`, leaves a side open.
        high: likewise.
        slack: largest distance from the boundary, up to rounding, at which it may be active, see `Set`.
        validate: check a tensor radius and tensor bounds, and a ball with bounds again when the problem is solved. Each
            is a host synchronisation on an accelerator.

    Raises:
        InfeasibleError: if a radius is negative or NaN, bounds cross, or no point of the ball lies between them.
        StructureError: when the problem is solved, if a parameter does not fit z.
        ValueError: when the problem is solved, if `slack` is negative.
    """

    radius: Tensor | float
    center: Tree = 0.0
    low: Tree | None = None
    high: Tree | None = None
    slack: float = 1e-7
    validate: bool = True

    def __post_init__(self) -> None:
        require_bounds(self, "L2Ball", look=self.validate)
        if isinstance(self.radius, Tensor) and not (self.validate and can_validate()):
            return
        empty = failing(self.radius >= 0)
        if bool(empty.any()):
            raise InfeasibleError(
                f"`L2Ball` needs radius >= 0, but {int(empty.sum())} of {empty.numel()} are negative or NaN. "
                "If the radius is learned, learn its logarithm or its softplus inverse."
            )

    def fit(self, layout: Layout) -> L2Ball:
        radius = fit_per_lane(self.radius, layout, "L2Ball.radius")
        center = fit_coordinates(self.center, layout, "L2Ball.center")
        low, high = fit_bound(self.low, layout, "L2Ball.low"), fit_bound(self.high, layout, "L2Ball.high")
        fitted = replace(self, radius=radius, center=center, low=low, high=high, validate=False)
        if is_cut(self) and self.validate and can_validate():
            require_reach(fitted, layout, "L2Ball", _cut_l2.is_empty)
        return fitted

    @property
    def extent(self) -> Tensor | float:
        return 2 * per_lane(self.radius)

    def project(self, z: Tensor) -> Tensor:
        if is_cut(self):
            return _cut_l2.reach(Cut.of(self), z).nearest
        radius = per_lane(self.radius)
        offset = z - self.center
        norm = euclidean_norm(offset)
        outside = norm > radius
        # Inside, divide by 1: the branch that is not taken must have a finite derivative.
        return torch.where(outside, self.center + offset * (radius / torch.where(outside, norm, 1.0)), z)

    def blocked(self, z: Tensor, gradient: Tensor) -> Tensor | None:
        return Cut.of(self).box.blocked(z, gradient) if is_cut(self) else None

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        if is_cut(self):
            return _cut_l2.tangent(Cut.of(self), z, gradient, L2Ball.motion)
        near, norm, u = self._boundary(z)
        slope = dot(gradient, u)
        distance, pressed = per_lane(self.radius) - self._rounding(z) - norm, -slope
        active = near & ~clear(distance, pressed, self.slack)
        on = active | (near & (distance <= 0))  # on the sphere, even if the gradient pulls z off it
        across = gradient - u * slope
        point = active & (norm <= self._rounding(z))  # a ball of radius zero fixes every direction
        u, slope = u * (active & ~point), slope * (active & ~point)

        def projector(v: Tensor) -> Tensor:
            return v * ~point - u * dot(u, v)

        def count() -> Counts:
            n = z.shape[-1]
            held = torch.where(point, n, active.long()).squeeze(-1)
            # At radius zero the constraint has no multiplier: the motion with the radius is one-sided.
            undecided = point | (on & negligible(pressed, gradient, across))
            undecided = undecided | (near & unresolved(distance, pressed, self.slack, z))
            return Counts(n - held, held, undecided.squeeze(-1).long())

        def motion(term: L2Ball, at: Tensor) -> Tensor:
            # From radius zero, z moves in the direction of the force.
            force = euclidean_norm(gradient)
            normal = torch.where(point, -gradient / torch.where(force > 0, force, 1.0), u)
            return term._carried(self, active, normal)

        def duals(layout: Layout) -> dict[str, Tree]:
            # At radius zero the multiplier of |z - c| <= r is the length of the force that it takes.
            return {"radius": torch.where(point, euclidean_norm(gradient), -slope).squeeze(-1)}

        # The multiplier of (|z - c|^2 - r^2) / 2, from stationarity along the normal: grad g = -mu (z - c).
        curvature = -slope / torch.where(norm > 0, norm, 1.0)
        # No `force`: where z moves with the ball, mu (z - c) changes only along u, which P removes.
        return Tangent(projector, curvature, count, motion=Carry(L2Ball.motion, motion), duals=duals)

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        if is_cut(self):
            return _cut_l2.motion(Cut.of(self), Cut.of(origin), z)
        active, _, u = origin._boundary(z)
        return self._carried(origin, active, u)

    def _carried(self, origin: Self, active: Tensor, u: Tensor) -> Tensor:
        moved: Tensor = u * (per_lane(self.radius) - per_lane(origin.radius)) + active.to(u.dtype) * (
            self.center - origin.center
        )
        return moved

    def _boundary(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return whether the boundary is active, |z - c|, both `(*lanes, 1)`, and the normal, zero off it."""
        radius = per_lane(self.radius)
        offset = z - self.center
        norm = euclidean_norm(offset)
        active = norm.detach() >= radius - self.slack - self._rounding(z)
        return active, norm, torch.where(active, offset / torch.where(norm > 0, norm, 1.0), 0.0)

    def _rounding(self, z: Tensor) -> Tensor:
        """Return how far rounding moves a projected point off the sphere; in single precision more than `slack`."""
        return 8 * torch.finfo(z.dtype).eps * (euclidean_norm(z) + per_lane(self.radius)).detach()
