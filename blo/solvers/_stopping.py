"""What a residual can be asked for: the curvature that it is measured in, and the rounding of gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import all_true, length
from blo.solvers._base import Problem

#: Units of rounding of a gradient below which no residual is asked for.
_ROUNDING = 16
#: Units of rounding, of the largest gradient met, by which two evaluations at one point may differ: the order in which
#: an accelerator adds is not always the same.
_REPEATED = 256
#: Error of a solution, relative to its length, that no tolerance hides. A large tolerance in an absolute unit allows
#: that multiple of it, and a small one in units of the curvature, as the default solvers have, no more than the last.
_RELATIVE, _LOOSE, _TIGHT = 1e-4, 100, 1e5
#: Error of a solution near zero, which has no length to compare it with, in units of the tolerance.
_NEAR_ZERO = 1e-4
#: Absolute tolerance that fixed steps are held to, where the curvature is small.
_UNASKED = 1e-5
#: Share of the rise of the residual along a step that a residual hidden by rounding may have: its error is at most that
#: share of the step.
_SHARE = 0.3
#: Most steps from which the curvatures that make up a residual are read off, and the share of the least of them that
#: curvatures may have which are not looked for, since the residual is too small to hide them.
_LOOKS, _SPREAD = 6, 1e-5
#: How often a step that shows no curvature is made longer, and how much.
_LONGER, _LONG = 8, 1e4


class Place(NamedTuple):
    """Where a solve has come to and where it began, all held constant, shapes `(*lanes, n)`.

    Attributes:
        z: the point.
        slope: the gradient there.
        origin: the start.
        first: the gradient at the start.
    """

    z: Tensor
    slope: Tensor
    origin: Tensor
    first: Tensor

    @property
    def span(self) -> Tensor:
        """The length that errors of z are compared with, shape `(*lanes, 1)`: that of z or of the way to it."""
        return torch.maximum(length(self.z), length(self.z - self.origin))

    @property
    def size(self) -> Tensor:
        """The larger of the two gradients, shape `lanes`."""
        return torch.maximum(length(self.slope), length(self.first)).squeeze(-1)


def reachable(slope: Tensor) -> Tensor:
    """Return the rounding of gradients as large as the slope, shape `lanes`."""
    return _ROUNDING * torch.finfo(slope.dtype).eps * length(slope.detach()).squeeze(-1)


def resolution(problem: Problem, z: Tensor) -> float:
    """Return the unit of rounding of the arithmetic that gradients are computed in."""
    return problem.eps or torch.finfo(z.dtype).eps


def bend(problem: Problem, at: Place, unit: Tensor | None, error: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the curvature along the residual, shape `(*lanes, 1)`, and the rise of the residual, shape `lanes`.

    A step as short as errors should be leads down the residual; the curvature is what the step changes of the natural
    map, over its length. Where the change drowns in rounding, the curvature is the largest that would drown as well.

    A residual of several curvatures shows the largest. Where the error along the others may matter, further steps lead
    along the part of the residual that the ones before have not changed (Eisenstat, Elman and Schultz, SIAM J. Numer.
    Anal. 1983, GCR), and the curvature is the residual over the length of the Newton step that they make up.

    Args:
        problem: the problem.
        at: where.
        unit: what the residual is measured in; None for 1.
        error: the error of z that matters, shape `(*lanes, 1)`; None for that of solvers with small tolerances.
    """
    error = _error(at, 0.0) if error is None else error
    unit = problem.scale(at.z, at.slope, unit)
    left = problem.natural(at.z, at.slope, unit)
    size = length(left)
    rest = torch.where(size > 0, left / torch.where(size > 0, size, 1.0), unaligned(at.z))
    step = max(torch.finfo(at.z.dtype).eps ** 0.5, 1e-6) * torch.where(at.span > 0, at.span, _NEAR_ZERO)
    known: list[tuple[Tensor, Tensor]] = []
    newton, share = torch.zeros_like(left), torch.ones_like(size)
    looks, longer = min(_LOOKS, at.z.shape[-1]), _LONGER
    unit = torch.minimum(unit, problem.scale(at.z - step * rest, at.slope, unit))
    left = problem.natural(at.z, at.slope, unit)
    while looks:
        ahead = rest / torch.where(share > 0, share, 1.0)
        aside = at.z - step * ahead
        turned = left - problem.natural(aside, problem.gradient(aside).detach(), unit)
        least = _least(at.slope)
        if problem.term.rounds:
            least = torch.maximum(least, _least(unit * aside))
        lost = (size > 0) & (length(turned) <= least)
        if longer and not (known or all_true(~lost)):
            # The solver may have made no way at all, which says nothing about the unit of z.
            step, longer = torch.where(lost, _LONG * step, step), longer - 1
            unit = torch.minimum(unit, problem.scale(at.z - step * ahead, at.slope, unit))
            left = problem.natural(at.z, at.slope, unit)
            continue
        looks -= 1
        for past, image in known:
            along = (turned * image).sum(-1, keepdim=True)
            ahead, turned = ahead - along / step * past, turned - along * image
        found = length(turned)
        curved = _over(found, least, step)
        image = turned / torch.where(found > 0, found, 1.0)
        known.append((ahead / curved, image))
        along = (rest * image).sum(-1, keepdim=True)
        newton, rest = newton + along / curved * ahead, rest - along * image
        share = length(rest)
        if all_true(size * share <= _SPREAD * curved * error):
            break
    curved = 1 / (length(newton) + share / curved)
    curved = torch.where(torch.isfinite(curved) & (curved > 0), curved, 1.0)
    return curved, (curved * step).squeeze(-1)


def required(tol: float, problem: Problem, at: Place, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Return what an absolute tolerance asks of the residual, and what it would allow near zero, shapes `lanes`.

    It asks for less than the tolerance where the curvature is small: that along the way of the solve, which costs
    nothing, where the residual is small enough for curvatures far below that, otherwise that along the residual.
    """
    way, turn = length(at.z - at.origin), length(at.slope - at.first)
    error = _error(at, tol)
    curved = turn / torch.where(way > 0, way, 1.0)
    if not all_true((way > 0) & (residual.unsqueeze(-1) <= _SPREAD * curved * error)):
        curved = bend(problem, at, None, error)[0]
    return _bounded(torch.full_like(way, tol), tol, curved, error)


def solved(tol: float, problem: Problem, at: Place, *, asked: bool) -> Tensor:
    """Return the residual above which a point that its solver has not confirmed is no solution, shape `lanes`.

    It is the tolerance, or less where the curvature is small. There is no further gradient where the residual is above
    the tolerance anyway.

    Args:
        tol: an absolute tolerance of the residual.
        problem: the problem.
        at: the point.
        asked: the tolerance was asked for, so that a large one allows large errors.
    """
    residual = problem.residual(at.z, at.slope)
    limit = torch.full_like(residual, tol)
    if all_true((residual == 0) | ~(residual <= limit)):
        return limit
    error = _error(at, tol if asked else _UNASKED)
    return _bounded(limit.unsqueeze(-1), min(tol, _UNASKED), bend(problem, at, None, error)[0], error)[0]


def required_in_units(tol: float, problem: Problem, at: Place) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return the same for a tolerance in units of the curvature, that unit, and the rise along the residual."""
    unit, least = curvature(problem, at.z, at.slope)
    error = min(_RELATIVE, _TIGHT * tol) * at.span
    curved, rise = bend(problem, at, unit, error)
    return _bounded(tol * least.clamp(max=1.0), tol, curved, error), unit, rise


def _error(at: Place, tol: float) -> Tensor:
    """Return the error of z that an absolute tolerance allows, shape `(*lanes, 1)`."""
    return max(_RELATIVE, _LOOSE * tol) * at.span


def _bounded(limit: Tensor, tol: float, curved: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Return the limit, lowered to the residual of a solution with this error, and the limit of one near zero."""
    lowered = torch.minimum(limit, curved * error.clamp(min=_NEAR_ZERO * tol))
    lowered = torch.where(torch.isfinite(lowered), lowered, limit)
    return lowered.squeeze(-1), torch.minimum(limit, curved * tol).squeeze(-1)


def repeats(problem: Problem, at: Place) -> Tensor:
    """Tell in which lanes a second evaluation of the gradient at z is the first one, up to rounding, shape `lanes`."""
    drift = length(problem.gradient(at.z).detach() - at.slope).squeeze(-1)
    return ~(drift > _REPEATED * resolution(problem, at.z) * at.size)  # a NaN is no difference


def hidden(residual: Tensor, rise: Tensor, noise: Tensor) -> Tensor:
    """Tell in which lanes the rounding of the gradient hides the residual, and hides no error of z that matters."""
    return (residual <= noise) & (residual <= _SHARE * (rise - noise / _ROUNDING))


def rounding(problem: Problem, z: Tensor, slope: Tensor, residual: Tensor, unit: Tensor | None = None) -> Tensor:
    """Return the residual that the rounding of the gradient hides at z, shape `lanes`.

    It is seen in how the natural map changes when z does by no more than its own rounding: in a set that is small
    beside the gradient it hardly does. On a kink, where minimisers
    like to be, that change is a jump and no rounding; so where it would hide the residual it is looked at a little
    beside z as well, where there is no kink but by chance, and the smaller change counts.
    """
    here = _unsteadiness(problem, z, slope, unit)
    if all_true(residual > here):
        return here
    aside = z + _length(z) * unaligned(z)
    beside = _unsteadiness(problem, aside, problem.gradient(aside).detach(), unit)
    return torch.where(beside < here, beside, here)  # there may be no gradient beside z


def _unsteadiness(problem: Problem, z: Tensor, slope: Tensor, unit: Tensor | None) -> Tensor:
    """Return how much the natural map at z changes when z does by its own rounding, with a margin, by lane."""
    ahead = z * (1 + 2 * resolution(problem, z))
    unit = problem.scale(z, slope, unit)
    change = problem.natural(ahead, problem.gradient(ahead).detach(), unit) - problem.natural(z, slope, unit)
    return _ROUNDING * length(change).squeeze(-1)


def curvature(problem: Problem, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return `|H d|` for the vector d of `unaligned`, shape `(*lanes, 1)`, as it is and as tolerances count it.

    It is measured by a difference of gradients. Where these do not tell, the former is 1, and the latter the largest
    curvature that would not show.
    """
    change = gradient_change(problem, z, slope, unaligned(z))
    found = length(change)
    known = torch.isfinite(found) & (found > 0)
    step = _length(z)
    return torch.where(known, found, 1.0), _over(found * step, _least(slope), step)


def _over(change: Tensor, least: Tensor, step: Tensor) -> Tensor:
    """Return the change of a gradient over the length of a step, or what rounding may hide; 1 where nothing tells."""
    found = torch.maximum(change, least) / step
    return torch.where(torch.isfinite(found) & (found > 0), found, 1.0)


def _least(slope: Tensor) -> Tensor:
    """Return the change of a vector that drowns in its rounding, shape `(*lanes, 1)`."""
    return 4 * torch.finfo(slope.dtype).eps * length(slope.detach())


def unaligned(z: Tensor) -> Tensor:
    """Return a unit vector that no problem is likely to be aligned with, shape `(n,)`."""
    direction = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device).square().cos()
    unit: Tensor = direction / torch.linalg.vector_norm(direction)
    return unit


def gradient_change(problem: Problem, z: Tensor, slope: Tensor, direction: Tensor) -> Tensor:
    """Return `H d` for a unit vector d, by a difference from the gradient `slope` at z, shape `(*lanes, n)`."""
    z, slope = z.detach(), slope.detach()
    step = _length(z)
    change: Tensor = (problem.gradient(z + step * direction).detach() - slope) / step
    return change


def _length(z: Tensor) -> Tensor:
    """Return the length of a step over which differences of gradients tell most, shape `(*lanes, 1)`."""
    size = torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp(min=1.0)
    found: Tensor = torch.finfo(z.dtype).eps ** 0.5 * size
    return found
