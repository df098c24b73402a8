"""The accuracy that a stopping criterion can ask for, from the curvature and from the rounding error of gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo._curvature import (
    HIDDEN,
    NEAR_ZERO,
    Place,
    curvature_along_residual,
    curvature_of_change,
    lost_in_rounding,
    unaligned,
)
from blo._term import length_for_errors
from blo._vectors import length, norm
from blo.solvers._base import Problem

#: The smallest residual that a criterion asks for, in units of rounding of the gradient.
ROUNDING = 16
#: Two evaluations at one point are equal if they differ by at most this many units of rounding of the largest gradient:
#: an accelerator does not always add in the same order.
_REPEATED = 256
#: Relative error of a solution that is accepted for every tolerance.
_RELATIVE = 1e-4
#: Relative error of a solution over the tolerance. An absolute tolerance, if it is large, allows `_LOOSE` times its
#: value. A tolerance in units of the curvature, as the default solvers have, allows at most `_TIGHT` times its value.
_LOOSE, _TIGHT = 30, 1e5
#: With a tolerance in units of the curvature, curvatures below this share of it are not searched for: the residual is
#: too small to hide an error along them.
_SPREAD = 1e-5
#: The absolute tolerance for solvers with a fixed number of steps, where the curvature is small.
_UNASKED = 1e-5
#: If rounding hides the residual, it may be at most this share of the rise of the residual along a step. The error of z
#: is then at most this share of the step.
_SHARE = 0.3


def resolution(problem: Problem, z: Tensor) -> float:
    """Return the machine epsilon of the arithmetic in which gradients are computed."""
    return problem.eps or torch.finfo(z.dtype).eps


def required(tol: float, problem: Problem, at: Place, residual: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Return the residual that an absolute tolerance asks for, and a looser one for solutions near zero.

    Both have the shape `lanes`. The last result is the rise of the residual along itself, shape `lanes`, or None if it
    was not measured.

    Where the curvature is small, the residual must be smaller than the tolerance. The curvature is that between the
    start and z, which costs no gradient, if the residual is so small that even much smaller curvatures would allow no
    large error. Otherwise it is the curvature along the residual.
    """
    way, turn = length(at.z - at.origin), length(at.slope - at.first)
    error = _error(problem, at, tol)
    curved, rise = turn / torch.where(way > 0, way, 1.0), None
    if not all_true((way > 0) & (residual.unsqueeze(-1) <= HIDDEN * curved * length_for_errors(problem.term, at.span))):
        curved, rise = curvature_along_residual(problem, at, None)
    return _bounded(torch.full_like(way, tol), tol, curved, error), rise


def solved(tol: float, problem: Problem, at: Place, *, asked: bool) -> Tensor:
    """Return the residual above which a point is not accepted as a solution, shape `lanes`.

    This is for solvers that do not revise their criterion themselves. The residual is the tolerance, or less where the
    curvature is small. No further gradient is computed if the residual of every lane exceeds the tolerance anyway.

    Args:
        tol: an absolute tolerance for the residual.
        problem: the problem.
        at: the point.
        asked: whether the user gave the tolerance. Then a large tolerance allows a large error.
    """
    residual = problem.residual(at.z, at.slope)
    limit = torch.full_like(residual, tol)
    if all_true((residual == 0) | ~(residual <= limit)):
        return limit
    error = _error(problem, at, tol if asked else _UNASKED)
    return _bounded(limit.unsqueeze(-1), min(tol, _UNASKED), curvature_along_residual(problem, at, None)[0], error)[0]


def required_in_units(tol: float, problem: Problem, at: Place) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return the two residuals of `required` for a tolerance in units of the curvature, the unit, and the rise."""
    unit, least = curvature(problem, at.z, at.slope)
    error = min(_RELATIVE, _TIGHT * tol) * length_for_errors(problem.term, at.span)
    curved, rise = curvature_along_residual(problem, at, unit, _SPREAD * error)
    return _bounded(tol * least.clamp(max=1.0), tol, curved, error), unit, rise


def _error(problem: Problem, at: Place, tol: float) -> Tensor:
    """Return the error of z that an absolute tolerance allows, shape `(*lanes, 1)`."""
    # Relative to the larger of |z| and the distance from the start, since z itself may be zero. In a small set far from
    # zero every point has a small error relative to z.
    return max(_RELATIVE, _LOOSE * tol) * length_for_errors(problem.term, at.span)


def _bounded(limit: Tensor, tol: float, curved: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Return the limit, lowered to the residual of a solution with this error, and the limit for one near zero."""
    lowered = torch.minimum(limit, curved * error.clamp(min=NEAR_ZERO * tol))
    lowered = torch.where(torch.isfinite(lowered), lowered, limit)
    return lowered.squeeze(-1), torch.minimum(limit, curved * tol).squeeze(-1)


def repeats(problem: Problem, at: Place) -> Tensor:
    """Return the lanes in which a second evaluation of the gradient at z equals the first up to rounding."""
    drift = length(problem.gradient(at.z).detach() - at.slope, keepdim=False)
    # NaN counts as equal: it is not noise of a random objective.
    return ~(drift > _REPEATED * resolution(problem, at.z) * at.size)


def hidden(residual: Tensor, rise: Tensor, noise: Tensor) -> Tensor:
    """Return the lanes in which rounding hides the residual, but hides no error of z that matters."""
    # noise / ROUNDING is the unsteadiness without its margin: that part of the rise may itself be rounding.
    return (residual <= noise) & (residual <= _SHARE * (rise - noise / ROUNDING))


def rounding(problem: Problem, z: Tensor, slope: Tensor, residual: Tensor, unit: Tensor | None = None) -> Tensor:
    """Return the largest residual that rounding of the gradient may hide at z, shape `lanes`.

    This is the change of the natural map for a change of z within its rounding. In a set that is small relative to the
    gradient, the map hardly changes. At a kink of the objective, where minimisers often lie, the change is a jump and
    not rounding. So if the change would hide the residual, it is also measured at a point near z, which is unlikely to
    be a kink, and the smaller of the two is returned.
    """
    here = _unsteadiness(problem, z, slope, unit)
    if all_true(residual > here):
        return here
    aside = z + _difference_step(z) * unaligned(z)
    beside = _unsteadiness(problem, aside, problem.gradient(aside).detach(), unit)
    return torch.where(beside < here, beside, here)  # a NaN near z, outside the domain, gives way to the value at z


def _unsteadiness(problem: Problem, z: Tensor, slope: Tensor, unit: Tensor | None) -> Tensor:
    """Return the change of the natural map when z changes within its rounding, with a margin, shape `lanes`."""
    ahead = z * (1 + 2 * resolution(problem, z))
    unit = problem.scale(z, slope, unit)
    change = problem.natural(ahead, problem.gradient(ahead).detach(), unit) - problem.natural(z, slope, unit)
    return ROUNDING * length(change, keepdim=False)


def curvature(problem: Problem, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return the curvature `|H d|` for the vector d of `unaligned`, and the curvature for tolerances, `(*lanes, 1)`.

    Both come from a difference of gradients. If the difference is zero or not finite, the first is 1. If rounding may
    hide the difference, the second is the largest curvature that would be hidden.
    """
    change = gradient_change(problem, z, slope, unaligned(z))
    found = length(change)
    known = torch.isfinite(found) & (found > 0)
    step = _difference_step(z)
    return torch.where(known, found, 1.0), curvature_of_change(found * step, lost_in_rounding(slope), step)


def gradient_change(problem: Problem, z: Tensor, slope: Tensor, direction: Tensor) -> Tensor:
    """Return `H d` for a unit vector d, by a difference from the gradient `slope` at z, shape `(*lanes, n)`."""
    z, slope = z.detach(), slope.detach()
    step = _difference_step(z)
    change: Tensor = (problem.gradient(z + step * direction).detach() - slope) / step
    return change


def _difference_step(z: Tensor) -> Tensor:
    """Return the step length for differences of gradients, shape `(*lanes, 1)`.

    The square root of eps balances the rounding error of a forward difference against its truncation error.
    """
    size = norm(z).clamp(min=1.0)
    found: Tensor = torch.finfo(z.dtype).eps ** 0.5 * size
    return found
