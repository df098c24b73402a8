"""The 1-norm ball."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from blo._autodiff import as_tensor
from blo._layout import Layout
from blo._multipliers import clear, negligible, unresolved
from blo._term import Carry, Counts, Tangent, can_validate, failing, fit_coordinates, fit_per_lane, per_lane
from blo._types import Tree
from blo._vectors import dot
from blo.errors import InfeasibleError
from blo.sets import _cut_l1
from blo.sets._base import Set, in_single
from blo.sets._cut import Cut, fit_bound, is_cut, require_bounds, require_reach
from blo.sets._simplex import Simplex


@dataclass(frozen=True, eq=False)
class L1Ball(Set):
    """`{ z : |z - center|_1 <= radius, low <= z <= high }`, the norm running over all of z (of each lane).

    Source: Duchi et al. (ICML 2008) for the projection; with bounds, Helgason, Kennington and Lall (Math. Prog. 1980)
    and Croce and Hein (ICML 2021), Mind the box.

    Attributes:
        radius: a number, or a tensor of shape `()` or `lanes`; positive.
        center: a number, a tensor of z's shape, or a tree like z.
        low: as in `Box`, with the same rule for active bounds; None, like `-inf`, leaves a side open.
        high: likewise.
        slack: largest distance from the boundary, up to rounding, at which it may be active, see `Set`; then it is also
            the largest distance from the centre at which a coordinate may be held there.
        validate: check a tensor radius and tensor bounds, and a ball with bounds again when the problem is solved. Each
            is a host synchronisation on an accelerator.

    Raises:
        InfeasibleError: if a radius is not positive (at zero the set is one point, without a derivative), bounds cross,
            or no point of the ball lies between them.
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
        require_bounds(self, "L1Ball", look=self.validate)
        if isinstance(self.radius, Tensor) and not (self.validate and can_validate()):
            return
        empty = failing(self.radius > 0)
        if bool(empty.any()):
            raise InfeasibleError(
                f"`L1Ball` needs radius > 0, but {int(empty.sum())} of {empty.numel()} are zero, negative or NaN. "
                "If the radius is learned, learn its logarithm."
            )

    def fit(self, layout: Layout) -> L1Ball:
        radius = fit_per_lane(self.radius, layout, "L1Ball.radius")
        center = fit_coordinates(self.center, layout, "L1Ball.center")
        low, high = fit_bound(self.low, layout, "L1Ball.low"), fit_bound(self.high, layout, "L1Ball.high")
        fitted = replace(self, radius=radius, center=center, low=low, high=high, validate=False)
        if is_cut(self) and self.validate and can_validate():
            require_reach(fitted, layout, "L1Ball", _cut_l1.is_empty)
        return fitted

    @property
    def extent(self) -> Tensor | float:
        return 2 * per_lane(self.radius)

    @in_single
    def project(self, z: Tensor) -> Tensor:
        """Return the nearest point: for z outside, that of the simplex in the orthant of `z - center`."""
        if is_cut(self):
            return _cut_l1.reach(Cut.of(self), z).nearest
        offset = z - self.center
        outside = offset.abs().sum(-1, keepdim=True) > per_lane(self.radius)
        face = Simplex(self.radius, validate=False).project(offset.abs())
        return torch.where(outside, self.center + offset.sign() * face, z)

    def blocked(self, z: Tensor, gradient: Tensor) -> Tensor | None:
        return Cut.of(self).box.blocked(z, gradient) if is_cut(self) else None

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        if is_cut(self):
            return _cut_l1.tangent(Cut.of(self), z, gradient, L1Ball.motion)
        near, sign = self._boundary(z)
        # At a solution the gradient is -multiplier times the sign on the support, so average it there.
        multiplier = -dot(sign, gradient) / sign.abs().sum(-1, keepdim=True).clamp(min=1)
        offset, distance = (z - self.center).detach(), self._distance(z)
        active = near & ~clear(distance, multiplier, self.slack)
        on = active | (near & (distance <= 0))  # on the boundary, even if the gradient pulls z off it
        along = gradient + sign * multiplier
        sign = torch.where(active & clear(offset.abs(), multiplier - gradient.abs(), self.slack), offset.sign(), 0.0)
        held = active & (sign == 0)
        size = sign.abs().sum(-1, keepdim=True).clamp(min=1)

        def projector(v: Tensor) -> Tensor:
            return v * ~held - sign * dot(sign, v) / size

        def count() -> Counts:
            # A coordinate off the support is undecided if its slope equals the ball's multiplier.
            tangential = projector(gradient)
            rest = multiplier - gradient.abs()
            edge = held & (negligible(rest, gradient, tangential) | (rest < 0))  # zero itself has no sign
            edge = edge | (active & unresolved(offset.abs(), rest, self.slack, z))
            loose = on & negligible(multiplier, gradient, torch.where(active, tangential, along))
            loose = loose | (near & unresolved(distance, multiplier, self.slack, z))
            fixed = torch.where(active, held.sum(-1, keepdim=True) + 1, 0).squeeze(-1)
            return Counts(z.shape[-1] - fixed, fixed, (edge.sum(-1) + loose.sum(-1)))

        def motion(term: L1Ball, at: Tensor) -> Tensor:
            return term._carried(self, active, sign)

        def duals(layout: Layout) -> dict[str, Tree]:
            return {"radius": torch.where(active, multiplier, 0.0).squeeze(-1)}

        return Tangent(projector, 0.0, count, motion=Carry(L1Ball.motion, motion), duals=duals)

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        if is_cut(self):
            return _cut_l1.motion(Cut.of(self), Cut.of(origin), z)
        return self._carried(origin, *origin._boundary(z))

    def _carried(self, origin: Self, active: Tensor, sign: Tensor) -> Tensor:
        size = sign.abs().sum(-1, keepdim=True).clamp(min=1)
        # The shortest motion u with <sign, u> = dr: the squared length of `sign` is the size of the support.
        grown = sign * (per_lane(self.radius) - per_lane(origin.radius)) / size
        moved: Tensor = grown + active.to(grown.dtype) * (self.center - origin.center)
        return moved

    def _boundary(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether the boundary is near, `(*lanes, 1)`, and the signs on the support, zero off it."""
        offset = (z - self.center).detach()
        near: Tensor = self._distance(z) <= self.slack
        size = offset.abs()  # in a ball smaller than the slack, the largest coordinates are still on the support
        largest = size >= size.amax(-1, keepdim=True).clamp(max=self.slack)
        return near, offset.sign() * (largest & near)

    def _distance(self, z: Tensor) -> Tensor:
        """Return how far inside the boundary z lies, shape `(*lanes, 1)`; at most 0 for a projected point."""
        # Rounding moves a projected point off the boundary, in single precision by more than the slack.
        size = as_tensor(z.detach().abs() + abs(self.center)).sum(-1, keepdim=True) + per_lane(self.radius)
        rounding = 8 * torch.finfo(z.dtype).eps * size
        reach = (z - self.center).detach().abs().sum(-1, keepdim=True)
        distance: Tensor = as_tensor(per_lane(self.radius) - rounding - reach)
        return distance.detach()
