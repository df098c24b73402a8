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
#: Error of a solution, relative to its length, that a tolerance in an absolute unit may not hide.
_RELATIVE = 1e-4
#: Share of the rise of the residual along a step that a residual hidden by rounding may have: its error is at most that
#: share of the step.
_SHARE = 0.3


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
        found = torch.maximum(length(self.z), length(self.z - self.origin))
        return torch.where(found > 0, found, 1.0)

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


def bend(problem: Problem, at: Place, unit: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the curvature along the residual, shape `(*lanes, 1)`, and the rise of the residual, shape `lanes`.

    A step as short as errors should be leads down the residual; the curvature is what the step changes of the natural
    map, over its length. Where the change drowns in rounding, the curvature is the largest that would drown as well.
    """
    left = problem.natural(at.z, at.slope, unit)
    size = length(left)
    direction = torch.where(size > 0, left / torch.where(size > 0, size, 1.0), unaligned(at.z))
    step = max(torch.finfo(at.z.dtype).eps ** 0.5, 1e-6) * at.span
    aside = at.z - step * direction
    change = length(problem.natural(aside, problem.gradient(aside).detach(), unit) - left)
    return _over(change, at.slope, step), change.squeeze(-1)


def required(tol: float, problem: Problem, at: Place) -> Tensor:
    """Return what an absolute tolerance asks of the residual, shape `lanes`: less where the curvature is small.

    The curvature is that along the way of the solve, or where it has none, that along the residual.
    """
    way = length(at.z - at.origin)
    if all_true(way > 0):
        curved = length(at.slope - at.first) / way
    else:
        curved = torch.where(way > 0, length(at.slope - at.first) / way, bend(problem, at, None)[0])
    limit: Tensor = (curved * (_RELATIVE * at.span).clamp(min=tol)).clamp(max=tol).squeeze(-1)
    return torch.where(torch.isfinite(limit), limit, tol)


def repeats(problem: Problem, at: Place) -> Tensor:
    """Tell in which lanes a second evaluation of the gradient at z is the first one, up to rounding, shape `lanes`."""
    drift = length(problem.gradient(at.z).detach() - at.slope).squeeze(-1)
    return ~(drift > _REPEATED * resolution(problem, at.z) * at.size)  # a NaN is no difference


def hidden(residual: Tensor, rise: Tensor, noise: Tensor) -> Tensor:
    """Tell in which lanes the rounding of the gradient hides the residual, and hides no error of z that matters."""
    return (residual <= noise) & (residual <= _SHARE * (rise - noise / _ROUNDING))


def rounding(problem: Problem, z: Tensor, slope: Tensor, residual: Tensor) -> Tensor:
    """Return the residual that the rounding of the gradient hides at z, shape `lanes`.

    It is seen in how the gradient changes when z does by no more than its own rounding. On a kink, where minimisers
    like to be, that change is a jump and no rounding; so where it would hide the residual it is looked at a little
    beside z as well, where there is no kink but by chance, and the smaller change counts.
    """
    here = _unsteadiness(problem, z, slope)
    if all_true(residual > here):
        return here
    aside = z + _length(z) * unaligned(z)
    beside = _unsteadiness(problem, aside, problem.gradient(aside).detach())
    return torch.where(beside < here, beside, here)  # there may be no gradient beside z


def _unsteadiness(problem: Problem, z: Tensor, slope: Tensor) -> Tensor:
    """Return how much the gradient `slope` at z changes when z does by its own rounding, with a margin, by lane."""
    ahead = problem.gradient(z * (1 + 2 * resolution(problem, z))).detach()
    return _ROUNDING * length(ahead - slope).squeeze(-1)


def curvature(problem: Problem, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return `|H d|` for the vector d of `unaligned`, shape `(*lanes, 1)`, as it is and as tolerances count it.

    It is measured by a difference of gradients. Where these do not tell, the former is 1, and the latter the largest
    curvature that would not show.
    """
    change = gradient_change(problem, z, slope, unaligned(z))
    found = length(change)
    known = torch.isfinite(found) & (found > 0)
    step = _length(z)
    return torch.where(known, found, 1.0), _over(found * step, slope, step)


def _over(change: Tensor, slope: Tensor, step: Tensor) -> Tensor:
    """Return the change of a gradient over the length of a step, or what rounding may hide; 1 where nothing tells."""
    least = 4 * torch.finfo(slope.dtype).eps * length(slope.detach())
    found = torch.maximum(change, least) / step
    return torch.where(torch.isfinite(found) & (found > 0), found, 1.0)


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
