"""What a residual can be asked for: the curvature that it is measured in, and the rounding of gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo.solvers._base import Problem

#: Units of rounding of a gradient below which no residual is asked for.
_ROUNDING = 16


def reachable(slope: Tensor) -> Tensor:
    """Return the rounding of gradients as large as the slope, shape `lanes`."""
    found: Tensor = _ROUNDING * torch.finfo(slope.dtype).eps * torch.linalg.vector_norm(slope.detach(), dim=-1)
    return found


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
    ahead = problem.gradient(z * (1 + 2 * torch.finfo(z.dtype).eps)).detach()
    found: Tensor = _ROUNDING * torch.linalg.vector_norm(ahead - slope, dim=-1)
    return found


def curvature(problem: Problem, z: Tensor, slope: Tensor) -> Tensor:
    """Return `|H d|` for the vector d of `unaligned`, shape `(*lanes, 1)`.

    It is measured by a difference of gradients; 1 where these do not tell.
    """
    change = gradient_change(problem, z, slope, unaligned(z))
    bend = torch.linalg.vector_norm(change, dim=-1, keepdim=True)
    return torch.where(torch.isfinite(bend) & (bend > 0), bend, 1.0)


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
