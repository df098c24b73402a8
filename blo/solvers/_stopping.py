"""What a residual can be asked for: the curvature that it is measured in, and the rounding of gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import all_true, length
from blo._curvature import HIDDEN, NEAR_ZERO, Place, bend, drowned, over, unaligned
from blo.solvers._base import Problem

#: Units of rounding of a gradient below which no residual is asked for.
_ROUNDING = 16
#: Units of rounding, of the largest gradient met, by which two evaluations at one point may differ: the order in which
#: an accelerator adds is not always the same.
_REPEATED = 256
#: Error of a solution, relative to its length, that no tolerance hides.
_RELATIVE = 1e-4
#: Relative errors of a solution, in units of the tolerance: a large one in an absolute unit allows the first, a small
#: one in units of the curvature, as the default solvers have, no more than the second.
_LOOSE, _TIGHT = 30, 1e5
#: Share of the curvature that others may have which solves with a small tolerance in units of it do not look for: their
#: residual is too small to hide them.
_SPREAD = 1e-5
#: Absolute tolerance that fixed steps are held to, where the curvature is small.
_UNASKED = 1e-5
#: Share of the rise of the residual along a step that a residual hidden by rounding may have: its error is at most that
#: share of the step.
_SHARE = 0.3


def reachable(slope: Tensor) -> Tensor:
    """Return the rounding of gradients as large as the slope, shape `lanes`."""
    return _ROUNDING * torch.finfo(slope.dtype).eps * length(slope.detach()).squeeze(-1)


def resolution(problem: Problem, z: Tensor) -> float:
    """Return the unit of rounding of the arithmetic that gradients are computed in."""
    return problem.eps or torch.finfo(z.dtype).eps


def required(tol: float, problem: Problem, at: Place, residual: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Return what an absolute tolerance asks of the residual, and what it would allow near zero, shapes `lanes`.

    Beside them the rise along the residual, shape `lanes`, where it was looked at; else None.

    It asks for less than the tolerance where the curvature is small: that along the way of the solve, which costs
    nothing, where the residual is small enough for curvatures far below that, otherwise that along the residual.
    """
    way, turn = length(at.z - at.origin), length(at.slope - at.first)
    error = _error(at, tol)
    curved, rise = turn / torch.where(way > 0, way, 1.0), None
    if not all_true((way > 0) & (residual.unsqueeze(-1) <= HIDDEN * curved * at.span)):
        curved, rise = bend(problem, at, None)
    return _bounded(torch.full_like(way, tol), tol, curved, error), rise


def solved(tol: float, problem: Problem, at: Place, *, asked: bool) -> Tensor:
    """Return the residual above which a point that its solver has not confirmed is not a solution, shape `lanes`.

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
    return _bounded(limit.unsqueeze(-1), min(tol, _UNASKED), bend(problem, at, None)[0], error)[0]


def required_in_units(tol: float, problem: Problem, at: Place) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return the same for a tolerance in units of the curvature, that unit, and the rise along the residual."""
    unit, least = curvature(problem, at.z, at.slope)
    error = min(_RELATIVE, _TIGHT * tol) * at.span
    curved, rise = bend(problem, at, unit, _SPREAD * error)
    return _bounded(tol * least.clamp(max=1.0), tol, curved, error), unit, rise


def _error(at: Place, tol: float) -> Tensor:
    """Return the error of z that an absolute tolerance allows, shape `(*lanes, 1)`."""
    return max(_RELATIVE, _LOOSE * tol) * at.span


def _bounded(limit: Tensor, tol: float, curved: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Return the limit, lowered to the residual of a solution with this error, and the limit of one near zero."""
    lowered = torch.minimum(limit, curved * error.clamp(min=NEAR_ZERO * tol))
    lowered = torch.where(torch.isfinite(lowered), lowered, limit)
    return lowered.squeeze(-1), torch.minimum(limit, curved * tol).squeeze(-1)


def repeats(problem: Problem, at: Place) -> Tensor:
    """Tell in which lanes a second evaluation of the gradient at z is the first one, up to rounding, shape `lanes`."""
    drift = length(problem.gradient(at.z).detach() - at.slope).squeeze(-1)
    return ~(drift > _REPEATED * resolution(problem, at.z) * at.size)  # a NaN is not a difference


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
    return torch.where(known, found, 1.0), over(found * step, drowned(slope), step)


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
