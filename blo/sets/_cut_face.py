"""Balls cut by bounds: how the active part of their boundary moves with theta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._layout import Layout
from blo._multipliers import adrift_in_bounds, negligible, unresolved
from blo._term import Carry, Counts, Strain, Tangent
from blo._types import Tree
from blo._vectors import dot
from blo.sets._box import dual_bounds
from blo.sets._cut import Ball, Cut


@dataclass(frozen=True, eq=False)
class CutFace:
    """The active part of the boundary at a solution.

    Attributes:
        cut: the ball.
        bound: coordinates held at a bound, booleans of shape `(*lanes, n)`.
        still: coordinates held at the centre, where the 1-norm has a kink, likewise.
        active: whether the sphere is active, booleans of shape `(*lanes, 1)`.
        normal: the gradient of the norm, shape `(*lanes, n)`; zero on coordinates at the centre.
        multiplier: the multipliers of the bounds, negative at an upper bound, same shape.
        twice: coordinates whose bound is at the centre, where the norm has a kink as well.
        full: lanes in which the solution lies on the sphere and has no free coordinate, `(*lanes, 1)`.
        pressed: the multiplier of `|z - center| <= radius`, likewise.
    """

    cut: Cut
    bound: Tensor
    still: Tensor
    active: Tensor
    normal: Tensor
    multiplier: Tensor
    twice: Tensor
    full: Tensor
    pressed: Tensor

    @property
    def free(self) -> Tensor:
        return ~(self.bound | self.still)

    def tangent(
        self,
        projector: Callable[[Tensor], Tensor],
        curvature: Tensor | float,
        count: Callable[[], Counts],
        instead: Callable[..., Tensor],
    ) -> Tangent:
        """Return the tangent space that moves with this face; `instead` as in `Carry`."""

        def motion(ball: Ball, at: Tensor) -> Tensor:
            return self.motion(Cut.of(ball), at)

        def strain(ball: Ball, at: Tensor) -> tuple[Tensor, Tensor]:
            return self.strain(Cut.of(ball), at)

        def duals(layout: Layout) -> dict[str, Tree]:
            return {"radius": self.pressed.squeeze(-1)} | dual_bounds(self.multiplier, self.bound, layout)

        strains = Strain(self.surplus, strain)
        return Tangent(projector, curvature, count, motion=Carry(instead, motion), strain=strains, duals=duals)

    def motion(self, cut: Cut, z: Tensor) -> Tensor:
        """Return how far z moves with the face when the ball becomes `cut`.

        Coordinates at a bound follow it, and the others follow the centre. The free ones also move along the normal, by
        the growth of the radius minus the growth of the norm that the bounds cause.
        """
        step, shift, left = self._moves(cut, z)
        # The shortest motion u of the free coordinates with <normal, u> = left.
        along = torch.where(self.free, self.normal * self.active, 0.0)
        squares = along.square().sum(-1, keepdim=True)
        push = along * left / torch.where(squares > 0, squares, 1.0)
        return torch.where(self.bound, step, (self.active | self.full) * shift) + push

    def surplus(self) -> Tensor:
        """Return the number of active constraints minus the number of independent ones, shape `lanes`."""
        return self.twice.sum(-1) + self.full.squeeze(-1).long()

    def strain(self, cut: Cut, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the motion of the constraints when the ball becomes `cut`, and the part that z cannot follow."""
        step, shift, left = self._moves(cut, z)
        radius = torch.zeros_like(left) + cut.radius - self.cut.radius
        moved = torch.cat([step * self.bound, shift, radius], -1)
        # A coordinate held by a bound and by the centre can follow only one of them.
        apart = torch.where(self.twice, step - shift, 0.0)
        return moved, torch.cat([apart, torch.zeros_like(shift), torch.where(self.full, left, 0.0)], -1)

    def _moves(self, cut: Cut, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the motion of bounds and centre, and the growth of the radius that the free coordinates make up."""
        step = cut.box._carried(self.cut.box, z, self.multiplier)
        shift = torch.zeros_like(z) + (cut.center - self.cut.center)
        # The change of the norm, to first order, by coordinates that follow their bounds and not the centre.
        taken = dot(self.normal, torch.where(self.bound, step - shift, 0.0))
        return step, shift, cut.radius - self.cut.radius - taken


def left_over(gradient: Tensor, force: Tensor, size: Tensor) -> Tensor:
    """Return the part of the gradient that the bounds balance: gradient plus force, or zero if that is only rounding.

    Args:
        gradient: of the objective at the solution, shape `(*lanes, n)`.
        force: of the ball, which balances the gradient on free coordinates, same shape.
        size: the size of the terms of the force, which bounds its rounding error, same shape.
    """
    left = gradient + force
    noise = 16 * torch.finfo(gradient.dtype).eps * (gradient.abs() + size).detach()
    return torch.where(left.detach().abs() <= noise, 0.0, left)


def loose_bounds(
    cut: Cut, z: Tensor, gradient: Tensor, multiplier: Tensor, tangential: Tensor, inner: Tensor
) -> Tensor:
    """Return which bounds are undecided, booleans of shape `(*lanes, n)`.

    Args:
        cut: the ball.
        z: the solution.
        gradient: of the objective there.
        multiplier: of the bounds, see `left_over`.
        tangential: the gradient projected on the face.
        inner: coordinates that are free and strictly between their bounds.
    """
    # Where low == high the bounds determine z, and the multiplier does not matter.
    open_ = torch.as_tensor(cut.low < cut.high, device=z.device)
    undecided = ~inner & negligible(multiplier, gradient, tangential)
    above, below = z - cut.low, cut.high - z
    undecided = undecided | unresolved(torch.minimum(above, below), multiplier, cut.slack, z)
    return open_ & (undecided | adrift_in_bounds(above, below, multiplier, cut.slack, z))
