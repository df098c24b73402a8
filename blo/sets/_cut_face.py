"""Balls cut by bounds: how the active part of their boundary moves with theta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._multipliers import negligible, unresolved
from blo._term import Carry, Counts, Strain, Tangent
from blo.sets._cut import Ball, Cut


@dataclass(frozen=True, eq=False)
class CutFace:
    """The active part of the boundary at a solution.

    Attributes:
        cut: the ball.
        bound: coordinates that a bound holds, booleans of shape `(*lanes, n)`.
        still: coordinates that the ball holds at its centre (the 1-norm does), likewise.
        active: whether the ball holds the solution, booleans of shape `(*lanes, 1)`.
        normal: the gradient of the norm, shape `(*lanes, n)`; zero on coordinates at the centre.
        multiplier: what presses coordinates against their bounds, negative towards the upper one, same shape.
        twice: coordinates whose bound is at the centre, where the norm has a kink as well.
        full: lanes in which the ball passes through a solution that leaves it no free coordinate, `(*lanes, 1)`.
    """

    cut: Cut
    bound: Tensor
    still: Tensor
    active: Tensor
    normal: Tensor
    multiplier: Tensor
    twice: Tensor
    full: Tensor

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

        return Tangent(projector, curvature, count, motion=Carry(instead, motion), strain=Strain(self.surplus, strain))

    def motion(self, cut: Cut, z: Tensor) -> Tensor:
        """Return how far the face carries z when the ball becomes this one.

        Bounds take their coordinates along, the centre the others; and along the normal these make up for the radius
        and for what the bounds change of the norm.
        """
        step, shift, left = self._moves(cut, z)
        along = torch.where(self.free, self.normal * self.active, 0.0)
        squares = along.square().sum(-1, keepdim=True)
        push = along * left / torch.where(squares > 0, squares, 1.0)
        return torch.where(self.bound, step, (self.active | self.full) * shift) + push

    def surplus(self) -> Tensor:
        """Return by how many constraints more than are independent hold the solution, shape `lanes`."""
        return self.twice.sum(-1) + self.full.squeeze(-1).long()

    def strain(self, cut: Cut, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return how constraints move when the ball becomes this one, and what of it z cannot follow."""
        step, shift, left = self._moves(cut, z)
        radius = torch.zeros_like(left) + cut.radius - self.cut.radius
        moved = torch.cat([step * self.bound, shift, radius], -1)
        apart = torch.where(self.twice, step - shift, 0.0)
        return moved, torch.cat([apart, torch.zeros_like(shift), torch.where(self.full, left, 0.0)], -1)

    def _moves(self, cut: Cut, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return how far bounds and centre move, and what is left of the radius's growth for the free coordinates."""
        step = cut.box._carried(self.cut.box, z, self.multiplier)
        shift = torch.zeros_like(z) + (cut.center - self.cut.center)
        taken = (self.normal * torch.where(self.bound, step - shift, 0.0)).sum(-1, keepdim=True)
        return step, shift, cut.radius - self.cut.radius - taken


def left_over(gradient: Tensor, force: Tensor, size: Tensor) -> Tensor:
    """Return what the ball's force leaves of the gradient for the bounds, zero where that is rounding.

    Args:
        gradient: of the objective at the solution, shape `(*lanes, n)`.
        force: that of the ball, which takes the gradient of free coordinates away, same shape.
        size: that of the force before its rounding, same shape.
    """
    left = gradient + force
    noise = 16 * torch.finfo(gradient.dtype).eps * (gradient.abs() + size).detach()
    return torch.where(left.detach().abs() <= noise, 0.0, left)


def loose_bounds(
    cut: Cut, z: Tensor, gradient: Tensor, multiplier: Tensor, tangential: Tensor, inner: Tensor
) -> Tensor:
    """Tell which bounds are undecided, booleans of shape `(*lanes, n)`.

    Args:
        cut: the ball.
        z: the solution.
        gradient: of the objective there.
        multiplier: what is left of it for the bounds, once the ball has taken its share.
        tangential: its part along the face.
        inner: coordinates that are free and strictly between their bounds.
    """
    # Where no point is between them, z is given by the bounds and its multiplier has no say.
    open_ = torch.as_tensor(cut.low < cut.high, device=z.device)
    undecided = ~inner & negligible(multiplier, gradient, tangential)
    near = torch.minimum(z - cut.low, cut.high - z)
    return open_ & (undecided | unresolved(near, multiplier, cut.slack, z))
