"""Which of the rows near a solution hold it: those on which a gradient step from it, projected, comes to lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blo._multipliers import negligible, unresolved
from blo.sets._active_set import search
from blo.sets._rows import Face, times


@dataclass(frozen=True, eq=False)
class Hold:
    """The rows that hold a solution.

    Attributes:
        face: where these rows stay what they are; they may depend on each other.
        y: multipliers that balance the gradient, zero on the other rows, shape `(*lanes, k)`.
        pressed: the same, and on the other rows how strongly the gradient left on the face pushes towards them.
        tangential: the gradient left on the face, shape `(*lanes, n)`.
        spare: rows that hold, beside those that alone balance the gradient, booleans of shape `(*lanes, k)`.
        unsure: lanes in which the rows were not found, shape `(*lanes, 1)`.
    """

    face: Face
    y: Tensor
    pressed: Tensor
    tangential: Tensor
    spare: Tensor
    unsure: Tensor

    def undecided(self, distance: Tensor, gradient: Tensor, slack: float, z: Tensor) -> Tensor:
        """Tell which rows have a multiplier that cannot be told from zero, booleans of shape `(*lanes, k)`."""
        active = self.face.active
        weak = active & negligible(self.y, gradient, self.tangential)
        weak = weak | unresolved(distance, self.pressed, slack, z)
        # A step that is left crosses a row beyond the slack: the solution is not known as well as that.
        weak = weak | (~active & (distance > slack) & (self.pressed > distance))
        # Multipliers may be shifted along the dependences of the rows: a spare row that gains by it has a share.
        share = self.spare.to(self.y.dtype)
        share = share - times(self.face.rows, times(self.face.inverse, share))
        gains = share > torch.finfo(z.dtype).eps ** 0.5
        found: Tensor = (weak & ~gains) | (active & ((self.spare & ~gains) | self.unsure))
        return found

    def surplus(self) -> Tensor:
        """Return by how many rows more than are independent hold the solution, shape `lanes`."""
        return self.face.active.sum(-1) - self.face.held()

    def strain(self, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Return how the planes of the held rows move, and what of it no motion of z can follow, `(*lanes, k)`."""
        moved = torch.where(self.face.active, moved, 0.0)
        return moved, moved - times(self.face.rows, times(self.face.inverse, moved))


def hold(
    rows: Tensor, distance: Tensor, gradient: Tensor, rounding: Tensor, slack: float, equal: Tensor | None = None
) -> Hold:
    """Find the rows that hold a solution.

    Rows within `slack` are looked at alone. Multipliers tell which of them hold it, even where they depend on each
    other: a least-squares fit would spread the force over all of them.

    Args:
        rows: normals of length one or zero, shape `(*lanes, k, n)`.
        distance: of the solution to their planes, shape `(*lanes, k)`; infinite for rows that are open.
        gradient: of the objective at the solution, shape `(*lanes, n)`.
        rounding: that of the distance, broadcasts to it.
        slack: see the sets.
        equal: rows that are equations, booleans of shape `(k,)`; their distance is signed. By default none.
    """
    near = distance - rounding <= slack
    near = near if equal is None else near | equal
    # In double precision, since a gradient drowns the distances of rows that are near.
    wide = rows.dtype if rows.device.type == "mps" else torch.float64
    normals = (rows * near.unsqueeze(-1)).detach().to(wide)
    right = distance + rounding if equal is None else torch.where(equal, distance, distance + rounding)
    right = torch.where(near, right, 1.0).to(wide)
    # A long step would drown differences of distances in its rounding, and a shorter one ends on the same rows.
    slope = gradient.detach().to(wide)
    size = torch.linalg.vector_norm(slope, dim=-1, keepdim=True)
    ahead = -slope / size.clamp(min=1.0)
    found = search(normals, right, normals @ normals.mT, ahead, equal)
    gap = right - times(normals, ahead - times(normals.mT, found.multipliers))
    gap = gap if equal is None else torch.where(equal, 0.0, gap)
    touched = gap <= 64 * torch.finfo(wide).eps * size.clamp(max=1.0) + 8 * rounding
    tied = near & (touched | found.active | ~found.solved)
    face = Face.of(rows, tied)
    y, tangential = face.multipliers(gradient), face.project(gradient)
    pressed = torch.where(tied, y, -times(rows, tangential))
    return Hold(face, y, pressed, tangential, tied & ~found.active, ~found.solved)
