"""The tangent space of an intersection, assembled from those of its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import as_tensor, plain
from blo._term import Carry, Counts, Strain, Tangent
from blo.sets._base import Set
from blo.sets._dykstra import search
from blo.sets._norm import euclidean_norm
from blo.sets._rows import Face, inverse, times
from blo.sets._split import unit

#: Relative reduction of the force of a part, to test which constraints stay active.
_EASE = 1e-5
#: The least distance of the points around z that are projected, in units of rounding.
_ROUNDINGS = 64


@dataclass(frozen=True, eq=False)
class Meet:
    """Faces that meet at a solution.

    Attributes:
        parts: the sets.
        shares: the part of the gradient that each set balances, shape `(*lanes, n)`.
        tangents: those of the parts.
        z: the solution, shape `(*lanes, n)`.
        normals: for each part the projector on the normal space of its face, shape `(*lanes, n, n)`.
        face: the intersection of all faces.
    """

    parts: Sequence[Set]
    shares: Sequence[Tensor]
    tangents: Sequence[Tangent]
    z: Tensor
    normals: Sequence[Tensor]
    face: Face

    @classmethod
    def of(cls, parts: Sequence[Set], z: Tensor, shares: Sequence[Tensor], tangents: Sequence[Tangent]) -> Meet:
        # A direction stays on all faces if every normal projector maps it to zero: these are the common face's rows.
        normals = [_normal(tangent, z) for tangent in tangents]
        # One lane with a NaN would make `pinv` raise an error for all of them.
        rows = torch.cat([torch.where(torch.isfinite(normal), normal, 0.0) for normal in normals], -2)
        return cls(parts, shares, tangents, z, normals, Face(rows, inverse(rows)))

    def motion(self, carried: Sequence[Tensor]) -> Tensor:
        """Return the shortest motion that follows each face along its normals."""
        return times(self.face.inverse, self._along(carried))

    def carried(self, terms: Sequence[Set], at: Tensor) -> list[Tensor]:
        """Return how far z moves with each part alone when the parts become `terms`."""
        rows = zip(self.tangents, self.parts, terms, strict=True)
        return [tangent.carry(before, term, at) for tangent, before, term in rows]

    def bend(self, v: Tensor) -> Tensor:
        """Return K v for a tangent vector v: the sum over the parts, projected on the common face."""
        return self.face.project(sum((t.curve(v) for t in self.tangents), torch.zeros_like(v)))

    def force(self, terms: Sequence[Set], at: Tensor) -> Tensor:
        """Return the sum of the parts' forces.

        A part without a `force` keeps its normals along its own motion. The common motion differs from that, and on a
        curved face the normal changes with the difference.
        """
        total = torch.zeros_like(at)
        for tangent, term, carried in zip(self.tangents, terms, self.carried(terms, self.z), strict=True):
            if tangent.force is not None:
                total = total + tangent.force(term, at)
            elif is_curved(tangent):
                total = total + tangent.curve(tangent.project(at - self.z - carried))
        return total

    def strain(self, terms: Sequence[Set], at: Tensor) -> tuple[Tensor, Tensor]:
        """Return the motion of the faces along their normals, and the part z cannot follow; also within the parts."""
        moved = self._along(self.carried(terms, at))
        pairs = [(moved, moved - times(self.face.rows, times(self.face.inverse, moved)))]
        inner = zip(self.tangents, terms, strict=True)
        pairs += [tangent.strain.of(term, at) for tangent, term in inner if tangent.strain is not None]
        both = [torch.cat(column, -1) for column in zip(*pairs, strict=True)]
        return both[0], both[1]

    def surplus(self) -> Tensor:
        """Return the sum of the ranks of all normals minus their common rank, plus the surplus within the parts."""
        # The trace of a projector is its rank.
        across = sum((normal.diagonal(dim1=-2, dim2=-1).sum(-1) for normal in self.normals), -self.face.held())
        inner = [tangent.strain.surplus() for tangent in self.tangents if tangent.strain is not None]
        return sum(inner, as_tensor(across).round().long())

    def count(self) -> Counts:
        """Count. A curved part whose normals other parts share is degenerate, since its multiplier is not unique."""
        held = self.face.held()
        unsure = sum((tangent.counts().degenerate for tangent in self.tangents), torch.zeros_like(held))
        # A weak constraint may be redundant. If the others hold as many directions without it, it does not matter
        # whether it is active.
        if bool(plain((unsure > 0) & (self.surplus() > 0)).any()):
            unsure = torch.where(self._strong().held() == held, 0, unsure)
        # R R^+ projects on the multipliers that are unique. If the block of a part is smaller than its normal
        # projector, it shares some of its multipliers with other parts.
        image = self.face.rows @ self.face.inverse
        n = self.z.shape[-1]
        for index, (tangent, normal) in enumerate(zip(self.tangents, self.normals, strict=True)):
            block = image[..., index * n : (index + 1) * n, index * n : (index + 1) * n]
            shared = (normal - block).diagonal(dim1=-2, dim2=-1).sum(-1) > 1e-6
            unsure = unsure + (shared & is_curved(tangent)).long()
        return Counts(n - held, held, unsure)

    def _strong(self) -> Face:
        """Return the face of those constraints that stay active if each part is pressed a little less.

        A constraint that one part holds without a force, another part may hold with one.
        """
        tangents = []
        for part, share in zip(self.parts, self.shares, strict=True):
            force, size = pushed_back(part, self.z), euclidean_norm(share)
            length = euclidean_norm(force)
            # Shares are gradients, and point against the forces: this takes a little of each force away.
            eased = share + _EASE * size * force / torch.where(length > 0, length, 1.0)
            tangents.append(part.tangent(self.z, eased))
        return Meet.of(self.parts, self.z, self.shares, tangents).face

    def _along(self, carried: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.normals, carried, strict=True)
        return torch.cat([times(normal, step) for normal, step in pairs], -1)


def tangent(
    parts: Sequence[Set], z: Tensor, gradient: Tensor, max_cycles: int, instead: Callable[..., Tensor]
) -> Tangent:
    """Return the tangent space at a solution; `instead` as in `Carry`."""
    rough, found = _shares(parts, z, gradient, max_cycles)
    meet = Meet.of(parts, z, rough, [part.tangent(z, share) for part, share in zip(parts, rough, strict=True)])
    shares = _balanced(meet, rough, gradient)
    tangents = [part.tangent(z, share) for part, share in zip(parts, shares, strict=True)]
    meet = Meet(parts, shares, tangents, z, meet.normals, meet.face)

    def count() -> Counts:
        counts = meet.count()
        return counts._replace(degenerate=counts.degenerate + (~found).squeeze(-1).long())

    carry = Carry(instead, lambda term, at: meet.motion(meet.carried(term.sets, at)))
    strain = Strain(meet.surplus, lambda term, at: meet.strain(term.sets, at))
    curved = any(is_curved(one) for one in tangents)
    forced = curved or any(one.force is not None for one in tangents)
    return Tangent(
        meet.face.project,
        0.0,
        count,
        bend=meet.bend if curved else None,
        force=(lambda term, at: meet.force(term.sets, at)) if forced else None,
        motion=carry,
        strain=strain,
        duals=(lambda layout: [one.duals(layout) for one in tangents if one.duals])
        if all(one.duals for one in tangents)
        else None,
    )


def is_curved(tangent: Tangent) -> bool:
    """Return whether a face may be curved."""
    return tangent.bend is not None or isinstance(tangent.curvature, Tensor) or tangent.curvature != 0


def _shares(parts: Sequence[Set], z: Tensor, gradient: Tensor, max_cycles: int) -> tuple[list[Tensor], Tensor]:
    """Return the part of the gradient that each part balances, and in which lanes they were found, `(*lanes, 1)`.

    A solution is the projection of a gradient step from it, so the forces of this projection are the shares times the
    step size. The step is about as long as z, so that neither is lost in the rounding of the other.
    """
    wide = z.dtype if z.device.type == "mps" else torch.float64
    at, slope = z.detach().to(wide), gradient.detach().to(wide)
    rest = [tree.map(lambda t: t.detach().to(wide) if t.is_floating_point() else t, part) for part in parts]
    span, size = euclidean_norm(at), euclidean_norm(slope)
    step = torch.where(size > 0, torch.where(span > 0, span, 1.0) / torch.where(size > 0, size, 1.0), 1.0)
    with torch.no_grad():
        split = search(rest, at - step * slope, max_cycles)
    shares = -split.forces / step.unsqueeze(-1)
    return [share.to(z.dtype) for share in shares.unbind(-2)], split.found


def _balanced(meet: Meet, rough: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """Return differentiable shares that balance the gradient to rounding, as evenly as possible.

    If several parts hold the same direction, an even share may pull z off a face instead of pressing it against it.
    There the rough shares are kept, and the rest of the gradient is added to them.
    """
    n = gradient.shape[-1]

    def made_up(shares: Sequence[Tensor]) -> list[Tensor]:
        # Least-squares multipliers y of the rest of the gradient: part i gets -N_i y_i, with its normal projector N_i.
        y = meet.face.multipliers(gradient - sum(shares, torch.zeros_like(gradient)))
        blocks = y.unflatten(-1, (len(meet.parts), n)).unbind(-2)
        rows = zip(shares, meet.normals, blocks, strict=True)
        return [share - times(normal, block) for share, normal, block in rows]

    even, kept = made_up([torch.zeros_like(gradient)] * len(rough)), made_up(rough)
    z, size = meet.z.detach(), euclidean_norm(gradient.detach())
    span = euclidean_norm(z)
    step = torch.where(span > 0, span, 1.0) / torch.where(size > 0, size, 1.0)

    def off(shares: Sequence[Tensor]) -> Tensor:
        pairs = zip(meet.parts, shares, strict=True)
        gaps = [euclidean_norm(z - part.detach().project(z - step * share.detach())) for part, share in pairs]
        return torch.stack(gaps).amax(0)

    with torch.no_grad():
        good = off(even) <= 2 * off(kept) + torch.finfo(z.dtype).eps ** 0.375 * torch.where(span > 0, span, 1.0)
    return [torch.where(good, *pair) for pair in zip(even, kept, strict=True)]


def _normal(tangent: Tangent, z: Tensor) -> Tensor:
    """Return the projector on the normal space of a face, shape `(*lanes, n, n)`."""
    n = z.shape[-1]
    units = torch.eye(n, dtype=z.dtype, device=z.device).reshape(n, *(1,) * (z.ndim - 1), n).expand(n, *z.shape)
    return (units - torch.vmap(tangent.project)(units)).movedim(0, -2)


def pushed_back(part: Set, z: Tensor) -> Tensor:
    """Return a vector that presses z against all faces of the set that touch it, shape `(*lanes, n)`.

    It is the sum of the displacements when points around z, in both directions of each axis, are projected.
    """
    n, size, eps = z.shape[-1], 1 + z.abs().amax(-1, keepdim=True), torch.finfo(z.dtype).eps
    # From a point further away than the part is long, a projection also ends on faces that do not touch z. A point
    # nearer than the rounding of z would be z.
    reach = torch.maximum(eps**0.5 * unit([part], size), _ROUNDINGS * eps * size)
    units = torch.eye(n, dtype=z.dtype, device=z.device).reshape(n, *(1,) * (z.ndim - 1), n)
    around = z + reach * torch.cat([units, -units])
    moved: Tensor = around - torch.vmap(part.project)(around)
    return moved.sum(0)
