"""Newton's method for the nearest point of an intersection and the force of each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo._vectors import norm
from blo.sets._base import Set
from blo.sets._rows import inverse, times

#: The maximum number of steps. Steps end where this many of them have not reduced the gap to this share.
_STEPS, _LOOK, _GAIN = 12, 3, 0.1
#: Units of rounding in the gap of a point that is right.
_ROUNDINGS = 64


class Split(NamedTuple):
    """A point `x = z - sum(forces)` with `x = project_i(x + forces_i)` for every part i: the nearest point to z.

    The point is kept beside the forces: where z is far, x would be lost in the rounding of the difference.

    Attributes:
        x: shape `(*lanes, n)`.
        forces: one for each part, shape `(*lanes, parts, n)`; each is a normal of its part at the point.
        found: lanes in which the equations hold, shape `(*lanes, 1)`.
        gap: the distance of the point to its projections, shape `(*lanes, 1)`.
    """

    x: Tensor
    forces: Tensor
    found: Tensor
    gap: Tensor

    @classmethod
    def of(cls, parts: Sequence[Set], z: Tensor, forces: Tensor) -> Split:
        """Return the point that belongs to these forces."""
        x = z - forces.sum(-2)
        return cls._at(parts, z, x, forces, norm(x))

    def step(self, parts: Sequence[Set], z: Tensor) -> Split:
        """Return the result of one step of Newton's method."""
        newton = NewtonStep.at(parts, self.x, self.forces)
        x, forces = newton.step(parts, z, self.x, self.forces)
        # A projection passes on the rounding of its argument as far as its derivative is not zero.
        passed = norm(times(newton.slopes.abs(), forces.abs())).sum(-2)
        return self._at(parts, z, x, forces, norm(x) + passed)

    def completed(self, other: Split, better: Tensor) -> Split:
        """Return this result, replaced by `other` in the lanes `better`, booleans of shape `(*lanes, 1)`."""
        wide = better.unsqueeze(-1)
        pairs = zip(self, other, strict=True)
        return Split(*(torch.where(wide if old.ndim > better.ndim else better, new, old) for old, new in pairs))

    @classmethod
    def _at(cls, parts: Sequence[Set], z: Tensor, x: Tensor, forces: Tensor, rounded: Tensor) -> Split:
        gap = torch.linalg.vector_norm(apart(parts, x, forces), dim=(-2, -1)).unsqueeze(-1)
        eps = torch.finfo(z.dtype).eps
        return cls(x, forces, gap <= eps**0.75 * unit(parts, norm(z) + norm(x)) + _ROUNDINGS * eps * rounded, gap)


class NewtonStep(NamedTuple):
    """Newton's method with the derivatives at one point.

    Attributes:
        slopes: the derivative of the projection onto each part, shape `(*lanes, parts, n, n)`.
        inverse: the pseudo-inverse of the derivative of `apart` in the forces, for x = z - sum(forces): a square matrix
            of `parts n` rows.
    """

    slopes: Tensor
    inverse: Tensor

    @classmethod
    def at(cls, parts: Sequence[Set], x: Tensor, forces: Tensor) -> NewtonStep:
        one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        slopes = [_slope(part, x + force) for part, force in zip(parts, forces.unbind(-2), strict=True)]
        # d/dforces_j of x - project_i(x + forces_i) is -I - S (-I + [i = j] I) with the derivative S of project_i.
        rows = [
            torch.cat([-one.expand_as(slope) if other == index else slope - one for other in range(len(parts))], -1)
            for index, slope in enumerate(slopes)
        ]
        # A part that is empty gives NaN. In one lane, this would make `pinv` raise an error for all of them.
        system = torch.cat(rows, -2)
        return cls(torch.stack(slopes, -3), inverse(torch.where(torch.isfinite(system), system, 0.0)))

    def step(self, parts: Sequence[Set], z: Tensor, x: Tensor, forces: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next point and forces."""
        # `late` is zero up to rounding, of which the projection onto a small part leaves little.
        late = x + forces.sum(-2) - z
        # x changes by -late and by minus the change of the forces. `held` is the effect of the first part on `apart`.
        held = late.unsqueeze(-2) - times(self.slopes, late.unsqueeze(-2))
        change = times(self.inverse, (apart(parts, x, forces) - held).flatten(-2)).unflatten(-1, forces.shape[-2:])
        return x - late + change.sum(-2), forces - change


def improved(parts: Sequence[Set], z: Tensor, start: Split, best: Split) -> Split:
    """Return the better of `best` and the result of Newton's method from `start`, in each lane."""
    split, before = start, start.gap
    for step in range(_STEPS):
        last, split = split, split.step(parts, z)
        # Where parts only touch, the gap is far smaller than the error. The steps are then long, so test them as well.
        size = unit(parts, norm(z) + norm(split.x)) + norm(split.x)
        still = norm(split.x - last.x) <= torch.finfo(z.dtype).eps ** 0.375 * size
        split = split._replace(found=split.found & still)
        found, gap = split.found, split.gap
        best = best.completed(split, (found & ~best.found) | ((found == best.found) & (gap < best.gap)))
        arrived = best.found & (gap >= 0.5 * best.gap)
        if step % _LOOK == _LOOK - 1:
            arrived, before = arrived | ~(best.found | (gap < _GAIN * before)), gap  # or no progress from here
        if all_true(arrived):
            break
    return best


def apart(parts: Sequence[Set], x: Tensor, forces: Tensor) -> Tensor:
    """Return `x - project_i(x + forces_i)` for each part i, shape `(*lanes, parts, n)`."""
    pairs = zip(parts, forces.unbind(-2), strict=True)
    return torch.stack([x - part.project(x + force) for part, force in pairs], -2)


def unit(parts: Sequence[Set], size: Tensor) -> Tensor:
    """Return the length `size`, or the extent of the smallest part if that is less, shape `(*lanes, 1)`."""
    for part in parts:
        if part.extent is not None:
            size = torch.minimum(size, torch.as_tensor(part.extent, dtype=size.dtype, device=size.device).detach())
    return size


def _slope(part: Set, z: Tensor) -> Tensor:
    """Return the derivative of a projection, shape `(*lanes, n, n)`."""
    pullback = torch.func.vjp(part.project, z)[1]
    n = z.shape[-1]
    units = torch.eye(n, dtype=z.dtype, device=z.device).reshape(n, *(1,) * (z.ndim - 1), n).expand(n, *z.shape)
    found: Tensor = torch.vmap(lambda unit: pullback(unit)[0])(units)
    return found.movedim(0, -2)
