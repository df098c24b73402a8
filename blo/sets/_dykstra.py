"""The nearest point of an intersection, from the projections onto its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import all_true, transforms_active
from blo._vectors import norm
from blo.sets._base import Set
from blo.sets._split import NewtonStep, Split, improved, unit

#: Cycles after which Newton's method is first tried, and after which a far point is approached.
_FIRST, _FAR = 4, 16
#: Differentiated Newton steps at the solution: each makes one more order of derivatives right.
_ORDERS = 2
#: Rounds of projections that lead to the set, and the most cycles for a point next to it.
_ROUNDS, _NEAR = 16, 64
#: The first factor by which the distance grows, the least, the largest, and the most attempts.
_GROWTH, _LEAST, _LARGEST, _LEGS = 8.0, 1.05, 1e6, 100


def nearest(parts: Sequence[Set], z: Tensor, max_cycles: int) -> Tensor:
    """Return the nearest point to z, differentiable twice in z and in the parts; NaN where it was not found."""
    recorded = transforms_active() or (
        torch.is_grad_enabled() and any(t.requires_grad for t in (z, *tree.tensors(tuple(parts))))
    )
    finite = torch.isfinite(z.detach()).all(-1, keepdim=True)
    at = torch.where(finite, z, 0.0)
    rest = [part.detach() for part in parts]
    with torch.no_grad():
        split = search(rest, at.detach(), max_cycles)
        x, forces = split.x, split.forces
        newton = NewtonStep.at(rest, x, forces) if recorded else None
    # A Newton step with a constant inverse changes the forces only by rounding. Its derivative is that of the implicit
    # function theorem; a second step makes the second derivatives right.
    for _ in range(_ORDERS if newton is not None else 0):
        assert newton is not None
        x, forces = newton.step(parts, at, x, forces)
    # Compute x as a projection onto the first part, so that it lies exactly on its bounds.
    x = parts[0].project(x + forces[..., 0, :])
    return torch.where(finite & split.found, x, torch.nan)


def search(parts: Sequence[Set], z: Tensor, max_cycles: int) -> Split:
    """Find the nearest point to z: cycles of projections come near it, and Newton's method converges to it.

    Source: Boyle and Dykstra (1986), A method for finding projections onto the intersection of convex sets in Hilbert
    spaces; Qi and Sun (Math. Prog. 1993), for Newton's method on nonsmooth functions; O'Donoghue and Candes (Found.
    Comput. Math. 2015), for the restarts.
    """
    return _cycles(parts, z, max_cycles, far=True)


def _cycles(parts: Sequence[Set], z: Tensor, max_cycles: int, *, far: bool) -> Split:
    forces = torch.zeros_like(z).unsqueeze(-2).repeat_interleave(len(parts), -2)
    best, due = Split.of(parts, z, forces), _FIRST
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
            # Newton's method factorises a matrix of `parts n` rows, so it is tried ever more rarely.
            due *= 2
            best = improved(parts, z, Split.of(parts, z, forces), best)
            if far and cycle == _FAR and not all_true(best.found):
                best = _approached(parts, z, best)
    return best


def _approached(parts: Sequence[Set], z: Tensor, best: Split) -> Split:
    """Return in each lane `best` if that is found, otherwise what is found by way of points between the set and z.

    A cycle changes the forces by no more than the size of a part, and Newton's method needs forces that are nearly
    right. A point on the line to z has forces in about the same proportions, the more exactly the further both are from
    the set. So the distance grows by a factor that rises after each success and falls after a failure.
    """
    near = z
    for _ in range(_ROUNDS):
        for part in parts:
            near = part.project(near)
    away = norm(z - near)
    share = (unit(parts, torch.finfo(z.dtype).eps ** 0.5 * away) / torch.where(away > 0, away, 1.0)).clamp(max=1.0)
    at = near + share * (z - near)
    here, growth = _cycles(parts, at, _NEAR, far=False), torch.full_like(share, _GROWTH)
    for _ in range(_LEGS):
        going = here.found & ~best.found & (growth > _LEAST)
        if all_true(~going):
            break
        further = (share * growth).clamp(max=1.0)
        ahead = torch.where(further < 1, near + further * (z - near), z)
        length = norm(at - here.x)
        scale = torch.where(length > 0, norm(ahead - here.x) / torch.where(length > 0, length, 1.0), 1.0)
        # With these forces x solves the problem for a point that is as far as `ahead`, and close to that.
        start = Split(
            here.x, scale.unsqueeze(-1) * here.forces, torch.zeros_like(going), torch.full_like(scale, torch.inf)
        )
        trial = improved(parts, ahead, start, start)
        reached = going & trial.found
        best = best.completed(trial, reached & (further >= 1))
        here, at = here.completed(trial, reached), torch.where(reached, ahead, at)
        share = torch.where(reached, further, share)
        growth = torch.where(reached, (growth * growth).clamp(max=_LARGEST), growth.sqrt())
    return best
