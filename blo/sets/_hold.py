"""The active rows at a solution: those that are active at the projection of a gradient step from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blo._multipliers import negligible, unresolved
from blo._vectors import norm
from blo.sets._active_set import search
from blo.sets._rows import Face, times


@dataclass(frozen=True, eq=False)
class Hold:
    """The active rows at a solution.

    Attributes:
        face: the face on which these rows are constant; they may be linearly dependent.
        y: multipliers that balance the gradient, zero on the other rows, shape `(*lanes, k)`.
        pressed: the same, and on the other rows how strongly the tangential gradient pushes towards them.
        tangential: the gradient projected on the face, shape `(*lanes, n)`.
        spare: active rows that are not needed to balance the gradient, booleans of shape `(*lanes, k)`.
        unsure: lanes in which the search failed, shape `(*lanes, 1)`.
    """

    face: Face
    y: Tensor
    pressed: Tensor
    tangential: Tensor
    spare: Tensor
    unsure: Tensor

    def undecided(self, distance: Tensor, gradient: Tensor, slack: float, z: Tensor) -> Tensor:
        """Return which rows have a multiplier that is zero within its accuracy, booleans of shape `(*lanes, k)`."""
        active = self.face.active
        weak = active & negligible(self.y, gradient, self.tangential)
        weak = weak | unresolved(distance, self.pressed, slack, z)
        # The tangential gradient would step across a row beyond the slack: z is less accurate than the slack.
        weak = weak | (~active & (distance > slack) & (self.pressed > distance))
        # Multipliers are unique up to vectors d with rows' d = 0. A spare row with a positive entry in the projection
        # of `spare` on these vectors can have a positive multiplier, so it is not degenerate.
        share = self.spare.to(self.y.dtype)
        share = share - times(self.face.rows, times(self.face.inverse, share))
        gains = share > torch.finfo(z.dtype).eps ** 0.5
        found: Tensor = (weak & ~gains) | (active & ((self.spare & ~gains) | self.unsure))
        return found

    def surplus(self) -> Tensor:
        """Return the number of active rows minus the number of independent ones, shape `lanes`."""
        return self.face.active.sum(-1) - self.face.held()

    def strain(self, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Return the motion of the planes of active rows, and the part no motion of z can follow, `(*lanes, k)`."""
        moved = torch.where(self.face.active, moved, 0.0)
        return moved, moved - times(self.face.rows, times(self.face.inverse, moved))


def hold(
    rows: Tensor, distance: Tensor, gradient: Tensor, rounding: Tensor, slack: float, equal: Tensor | None = None
) -> Hold:
    """Find the active rows at a solution.

    Only rows within `slack` can be active. The multipliers of a projection decide which of them are, even if rows are
    dependent, where a least-squares fit of multipliers would spread the force over all of them.

    Args:
        rows: normals of length one or zero, shape `(*lanes, k, n)`.
        distance: of the solution to their planes, shape `(*lanes, k)`; infinite for rows that are open.
        gradient: of the objective at the solution, shape `(*lanes, n)`.
        rounding: of the distance, broadcasts to it.
        slack: see the sets.
        equal: rows that are equations, booleans of shape `(k,)`; their distance is signed. By default none.
    """
    near = distance - rounding <= slack
    near = near if equal is None else near | equal
    # In double precision, since the small distances of near rows would be lost in the rounding of the gradient.
    wide = rows.dtype if rows.device.type == "mps" else torch.float64
    # With z as the origin, distances are right-hand sides. A row that is not near becomes `0 z <= 1`, which holds.
    normals = (rows * near.unsqueeze(-1)).detach().to(wide)
    right = distance + rounding if equal is None else torch.where(equal, distance, distance + rounding)
    right = torch.where(near, right, 1.0).to(wide)
    # Limit the step to length 1: in a long one, differences of distances would be lost in rounding. The projection of a
    # shorter step has the same active rows.
    slope = gradient.detach().to(wide)
    size = norm(slope)
    ahead = -slope / size.clamp(min=1.0)
    found = search(normals, right, normals @ normals.mT, ahead, equal)
    gap = right - times(normals, ahead - times(normals.mT, found.multipliers))
    gap = gap if equal is None else torch.where(equal, 0.0, gap)
    # The rounding of a projected step of length at most 1, and that of the distances.
    touched = gap <= 64 * torch.finfo(wide).eps * size.clamp(max=1.0) + 8 * rounding
    tied = near & (touched | found.active | ~found.solved)
    face = Face.of(rows, tied)
    y, tangential = face.multipliers(gradient), face.project(gradient)
    pressed = torch.where(tied, y, -times(rows, tangential))
    return Hold(face, y, pressed, tangential, tied & ~found.active, ~found.solved)
