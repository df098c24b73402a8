"""The curvature along a residual: it shows how far the solution may be from a point with this residual."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo._term import Term, length_for_errors
from blo._vectors import dot, irregular, length

#: Error of a solution near zero, which has no length to compare it with.
NEAR_ZERO = 1e-4
#: Maximum number of steps to measure the curvatures in a residual.
#: Each step costs a gradient.
_LOOKS = 2
#: The part of a Newton step, relative to z, that is too short to hide an error along far smaller curvatures.
#: Behind such a step an error of 1e-4 of z needs a curvature 3e5 times smaller than the one that was measured.
HIDDEN = 3e-10
#: An error of z in a small set that cannot be distinguished from rounding, in units of rounding.
_ROUNDINGS = 8
#: How often a step that shows no curvature is made longer, and by which factor.
_LONGER, _LONG = 8, 1e4


class Mapped(Protocol):
    """A problem with the natural map of first-order optimality; see `blo.solvers.Problem`."""

    @property
    def term(self) -> Term: ...

    def gradient(self, z: Tensor) -> Tensor: ...

    def scale(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor: ...

    def natural(self, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor: ...


class Place(NamedTuple):
    """The point that a solve has reached and its start, as constants, shapes `(*lanes, n)`.

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
        """The length with which errors of z are compared, `(*lanes, 1)`: `max(|z|, |z - origin|)`."""
        return torch.maximum(length(self.z), length(self.z - self.origin))

    @property
    def size(self) -> Tensor:
        """The larger of the two gradients, shape `lanes`."""
        return torch.maximum(length(self.slope, keepdim=False), length(self.first, keepdim=False))


def curvature_along_residual(
    problem: Mapped, at: Place, unit: Tensor | None, fine: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the curvature along the residual, shape `(*lanes, 1)`, and the rise of the residual, shape `lanes`.

    The curvature is the change of the natural map over a step along the residual, divided by the length of the step,
    which is as short as errors should be. If the change is lost in rounding, it is the largest curvature that would be
    lost as well.

    If several curvatures make up the residual, the largest one dominates. If the error along smaller curvatures may
    matter, another step is made along what remains of the residual after the earlier steps (Eisenstat, Elman and
    Schultz, SIAM J. Numer. Anal. 1983, GCR), and the curvature is the residual over the length of the Newton step that
    the steps add up to.

    Args:
        problem: the problem.
        at: the point and the start.
        unit: the unit of the residual; None for 1.
        fine: length of the rest of the Newton step below which no more curvatures are measured, shape `(*lanes, 1)`; by
            default `HIDDEN` times z, or times the extent of a small set.
    """
    span, eps = length_for_errors(problem.term, at.span), torch.finfo(at.z.dtype).eps
    fine = HIDDEN * span if fine is None else fine
    unit = problem.scale(at.z, at.slope, unit)
    left = problem.natural(at.z, at.slope, unit)
    size = length(left)
    # A residual of zero has no direction: 0 / 0 would make the curvature of its lane NaN.
    rest = torch.where(size > 0, left / torch.where(size > 0, size, 1.0), unaligned(at.z))
    # Over sqrt(eps) of z, rounding leaves half of the digits of the change. In double precision the step is longer:
    # rounding may hide errors up to a share of it (see the end), and 1e-6 of z is small enough for that.
    step = max(eps**0.5, 1e-6) * torch.where(span > 0, span, NEAR_ZERO)
    if span is not at.span:  # in a small set far from zero, a step above the rounding of z
        step = torch.maximum(step, eps**0.75 * at.span)
    known: list[tuple[Tensor, Tensor]] = []
    newton, share = torch.zeros_like(left), torch.ones_like(size)
    looks, longer = min(_LOOKS, at.z.shape[-1]), _LONGER
    # One unit at both ends: the change must come from the gradient, not from another step length.
    unit = torch.minimum(unit, problem.scale(at.z - step * rest, at.slope, unit))
    left = problem.natural(at.z, at.slope, unit)
    noise = lost_in_rounding(at.slope)
    while looks:
        ahead = rest / torch.where(share > 0, share, 1.0)
        aside = at.z - step * ahead
        turned = left - problem.natural(aside, problem.gradient(aside).detach(), unit)
        # `z - prox(...)` of such a term is rounded like z, and the natural map is that times the unit.
        least = torch.maximum(noise, lost_in_rounding(unit * aside)) if problem.term.rounds else noise
        lost = (size > 0) & (length(turned) <= least)
        if longer and not (known or all_true(~lost)):
            # The solver may not have moved at all: then the length of its way does not show the scale of z.
            step, longer = torch.where(lost, _LONG * step, step), longer - 1
            unit = torch.minimum(unit, problem.scale(at.z - step * ahead, at.slope, unit))
            left = problem.natural(at.z, at.slope, unit)
            continue
        # GCR: make the image orthogonal to the earlier ones, and the direction with it, then reduce the residual along
        # the image.
        looks -= 1
        for past, image in known:
            along = dot(turned, image)
            ahead, turned = ahead - along / step * past, turned - along * image
        found = length(turned)
        curved = curvature_of_change(found, least, step)
        image = turned / torch.where(found > 0, found, 1.0)
        # `turned` is the change over `step * ahead`, so the change over `ahead / curved` is `image`, of length 1.
        known.append((ahead / curved, image))
        along = dot(rest, image)
        newton, rest = newton + along / curved * ahead, rest - along * image
        share = length(rest)
        # What the Newton step lacks is the rest of the residual over the curvature, as far as that has been measured.
        if all_true(size * share <= curved * fine):
            break
    # The residual was scaled to length 1. Its Newton step is `newton`, plus the rest over the last curvature.
    curved = 1 / (length(newton) + share / curved)
    # An unknown curvature counts as 1: residuals are then taken for errors of z.
    curved = torch.where(torch.isfinite(curved) & (curved > 0), curved, 1.0)
    if span is not at.span:
        # Rounding may hide an error of z up to a share of this rise. In a small set such an error is compared with the
        # set, as far as z itself can be rounded.
        short = torch.maximum(max(eps**0.5, 1e-6) * span, _ROUNDINGS * eps * at.span)
        step = torch.where(span < at.span, torch.minimum(step, short), step)
    return curved, (curved * step).squeeze(-1)


def curvature_of_change(change: Tensor, least: Tensor, step: Tensor) -> Tensor:
    """Return the change of a gradient, or one that rounding may hide, over the length of a step; 1 if unknown."""
    found = torch.maximum(change, least) / step
    return torch.where(torch.isfinite(found) & (found > 0), found, 1.0)


def lost_in_rounding(slope: Tensor) -> Tensor:
    """Return the largest change of a vector that is lost in its rounding, shape `(*lanes, 1)`."""
    # Each of the two gradients of a difference is rounded by about eps times its length; the margin is a factor of 2.
    return 4 * torch.finfo(slope.dtype).eps * length(slope.detach())


def unaligned(z: Tensor) -> Tensor:
    """Return a unit vector that no problem is likely to be aligned with, shape `(n,)`."""
    # Not random numbers: a generator that has moved is the sign of an objective that draws (see `Solving`).
    direction = irregular(z.shape[-1], z)
    unit: Tensor = direction / torch.linalg.vector_norm(direction)
    return unit.to(z.dtype)
