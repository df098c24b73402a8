"""The nearest point of an intersection, from the projections onto its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import all_true, transforms_active
from blo.sets._base import Set
from blo.sets._rows import inverse, times

#: Cycles after which Newton's method is first tried, and the maximum number of its steps each time.
_FIRST, _STEPS = 4, 12
#: Newton's method stops if this many steps have not reduced the gap to this share.
_LOOK, _GAIN = 3, 0.1
#: Differentiated Newton steps at the solution: each makes one more order of derivatives right.
_ORDERS = 2


class Split(NamedTuple):
    """A point `x = z - sum(forces)` with `x = project_i(x + forces_i)` for every part i: the nearest point to z.

    Attributes:
        forces: one for each part, shape `(*lanes, parts, n)`; each is a normal of its part at the point.
        found: lanes in which the equations hold, shape `(*lanes, 1)`.
        gap: the distance of the point to its projections, shape `(*lanes, 1)`.
    """

    forces: Tensor
    found: Tensor
    gap: Tensor


def nearest(parts: Sequence[Set], z: Tensor, max_cycles: int) -> Tensor:
    """Return the nearest point to z, differentiable twice in z and in the parts; NaN where it was not found."""
    recorded = transforms_active() or (
        torch.is_grad_enabled() and any(t.requires_grad for t in (z, *tree.tensors(tuple(parts))))
    )
    finite = torch.isfinite(z.detach()).all(-1, keepdim=True)
    at = torch.where(finite, z, 0.0)
    rest = [tree.detach(part) for part in parts]
    with torch.no_grad():
        split = search(rest, at.detach(), max_cycles)
        forces = split.forces
        back = _inverse(rest, at.detach(), forces) if recorded else None
    # A Newton step with a constant inverse changes the forces only by rounding. Its derivative is that of the implicit
    # function theorem; a second step makes the second derivatives right.
    for _ in range(_ORDERS if back is not None else 0):
        assert back is not None
        forces = forces - times(back, _apart(parts, at, forces).flatten(-2)).unflatten(-1, forces.shape[-2:])
    # Compute x as a projection onto the first part, so that it lies exactly on its bounds.
    x = parts[0].project(at - forces[..., 1:, :].sum(-2))
    return torch.where(finite & split.found, x, torch.nan)


def search(parts: Sequence[Set], z: Tensor, max_cycles: int) -> Split:
    """Find the nearest point to z: cycles of projections approach it, and Newton's method converges to it.

    Source: Boyle and Dykstra (1986), A method for finding projections onto the intersection of convex sets in Hilbert
    spaces; Qi and Sun (Math. Prog. 1993), for Newton's method on nonsmooth functions; O'Donoghue and Candes (Found.
    Comput. Math. 2015), for the restarts.
    """
    forces = torch.zeros_like(z).unsqueeze(-2).repeat_interleave(len(parts), -2)
    best, due = Split(forces, *_judged(parts, z, forces)), _FIRST
    base, age = forces, torch.ones_like(z[..., :1]).unsqueeze(-1)
    for cycle in range(1, max_cycles + 1):
        if all_true(best.found | best.gap.isnan()):  # a part that is empty has no projection
            break
        x, columns = z - base.sum(-2), []
        for part, force in zip(parts, base.unbind(-2), strict=True):
            ahead = x + force
            x = part.project(ahead)
            columns.append(ahead - x)
        # A cycle is block coordinate descent in the forces. It is slow where parts are nearly parallel: there a cycle
        # changes the forces by no more than the distance between the parts. Momentum, restarted where it points uphill,
        # accelerates it.
        last, forces = forces, torch.stack(columns, -2)
        onward = forces - last
        uphill = ((base - forces) * onward).sum((-2, -1), keepdim=True) > 0
        age = torch.where(uphill, 1.0, age)
        older = 0.5 * (1 + (1 + 4 * age * age).sqrt())
        base, age = forces + (age - 1) / older * onward, older
        if cycle in (due, max_cycles):
            due *= 2
            best = _newton(parts, z, forces, best)
    return best


def _newton(parts: Sequence[Set], z: Tensor, forces: Tensor, best: Split) -> Split:
    """Return in each lane the better of `best` and what Newton's method finds from `forces`."""
    before = _judged(parts, z, forces)[1]
    for step in range(_STEPS):
        move = -times(_inverse(parts, z, forces), _apart(parts, z, forces).flatten(-2)).unflatten(-1, forces.shape[-2:])
        forces = forces + move
        found, gap = _judged(parts, z, forces)
        # Where parts only touch, the gap is far smaller than the error. The steps are then long, so test them as well.
        found = found & (_norm(move.sum(-2)) <= torch.finfo(z.dtype).eps ** 0.375 * _size(z, forces))
        better = (found & ~best.found) | ((found == best.found) & (gap < best.gap))
        best = Split(
            *(
                torch.where(better.unsqueeze(-1) if new.ndim > better.ndim else better, new, old)
                for new, old in zip((forces, found, gap), best, strict=True)
            )
        )
        arrived = best.found & (gap >= 0.5 * best.gap)
        if step % _LOOK == _LOOK - 1:
            arrived, before = arrived | ~(best.found | (gap < _GAIN * before)), gap  # or no progress from here
        if all_true(arrived):
            break
    return best


def _judged(parts: Sequence[Set], z: Tensor, forces: Tensor) -> tuple[Tensor, Tensor]:
    gap = torch.linalg.vector_norm(_apart(parts, z, forces), dim=(-2, -1)).unsqueeze(-1)
    return gap <= torch.finfo(z.dtype).eps ** 0.75 * _size(z, forces), gap


def _apart(parts: Sequence[Set], z: Tensor, forces: Tensor) -> Tensor:
    """Return `x - project_i(x + forces_i)` for each part i, with `x = z - sum(forces)`, shape `(*lanes, parts, n)`."""
    x = z - forces.sum(-2)
    pairs = zip(parts, forces.unbind(-2), strict=True)
    return torch.stack([x - part.project(x + force) for part, force in pairs], -2)


def _inverse(parts: Sequence[Set], z: Tensor, forces: Tensor) -> Tensor:
    """Return the pseudo-inverse of the derivative of `_apart` in the forces: a square matrix of `parts n` rows."""
    x, n = z - forces.sum(-2), z.shape[-1]
    one = torch.eye(n, dtype=z.dtype, device=z.device)
    rows = []
    for index, (part, force) in enumerate(zip(parts, forces.unbind(-2), strict=True)):
        # d/dforces_j of x - project_i(x + forces_i) is -I - S (-I + [i = j] I) with the derivative S of project_i.
        slope = _slope(part, x + force)
        blocks = [slope - one - slope if other == index else slope - one for other in range(len(parts))]
        rows.append(torch.cat(blocks, -1))
    system = torch.cat(rows, -2)
    return inverse(torch.where(torch.isfinite(system), system, 0.0))


def _slope(part: Set, z: Tensor) -> Tensor:
    """Return the derivative of a projection, shape `(*lanes, n, n)`."""
    pullback = torch.func.vjp(part.project, z)[1]
    n = z.shape[-1]
    units = torch.eye(n, dtype=z.dtype, device=z.device).reshape(n, *(1,) * (z.ndim - 1), n).expand(n, *z.shape)
    found: Tensor = torch.vmap(lambda unit: pullback(unit)[0])(units)
    return found.movedim(0, -2)


def _norm(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return length


def _size(z: Tensor, forces: Tensor) -> Tensor:
    return _norm(z) + _norm(z - forces.sum(-2))
