"""The 1-norm ball cut by bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import as_tensor
from blo._multipliers import clear, negligible, unresolved
from blo._term import Counts, Tangent
from blo._vectors import dot
from blo.sets._cut import Cut, ahead
from blo.sets._cut_face import CutFace, left_over, loose_bounds
from blo.sets._cut_path import Piece, Ray, place


class Reach(NamedTuple):
    """The common loss of all distances from the centre after which their sum is the radius.

    Attributes:
        outside: lanes in which the loss is positive, so that the nearest point lies on the sphere.
        loss: shape `(*lanes, 1)`; meaningless where not outside.
        nearest: the nearest point to z, shape `(*lanes, n)`; NaN where there is none.
    """

    outside: Tensor
    loss: Tensor
    nearest: Tensor


def reach(cut: Cut, z: Tensor) -> Reach:
    """Find the nearest point of the ball within the bounds."""
    ray, radius = Ray.of(cut, z), torch.zeros_like(z[..., :1]) + cut.radius
    top = ray.offset.detach().abs().amax(-1, keepdim=True)
    # Subtract the largest distance, which only shifts the loss. Otherwise the rounding of a large z swamps the radius.
    # With t = top - loss, the distances of the nearest point are `size + t`, limited by the bounds.
    size = ray.offset.abs() - top
    inner, outer, behind = ray.inner.clamp(min=0.0), ray.outer.clamp(min=0.0), (-ray.outer).clamp(min=0.0)
    low, line, high = inner.detach(), size.detach(), outer.detach()
    share = (radius - behind.sum(-1, keepdim=True)).detach()
    # Where both bounds lie beyond the centre, the coordinate stays at the nearer one, at the distance `behind`.
    beyond = behind.detach() > 0
    early = torch.where(beyond, 0.0, torch.minimum(low - line, top))
    late = torch.where(beyond, 0.0, torch.minimum(high - line, top))

    def within(t: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(t + line, low), high).sum(-1, keepdim=True) <= share

    piece = Piece.find(early, late, top, within)
    # Recompute t from the free coordinates, so that only smooth operations are differentiated: the distances of the
    # held ones, and size + t of the free ones, add up to the radius.
    held = torch.where(piece.free, 0.0, torch.where(piece.full, torch.where(beyond, behind, outer), inner))
    left = radius - held.sum(-1, keepdim=True) - torch.where(piece.free, size, 0.0).sum(-1, keepdim=True)
    count = piece.free.sum(-1, keepdim=True)
    t = torch.where(count > 0, left / count.clamp(min=1), piece.middle)
    inside = cut.box.project(z)
    outside = (inside - cut.center).abs().sum(-1, keepdim=True) > radius
    on = place(cut, ray, piece, cut.center + ray.offset.sign() * (size + t).relu())
    return Reach(outside, top - t, torch.where(is_empty(cut, z), torch.nan, torch.where(outside, on, inside)))


def is_empty(cut: Cut, z: Tensor) -> Tensor:
    """Return in which lanes the ball has no point within the bounds, or the radius is NaN, shape `(*lanes, 1)`."""
    base = cut.base(z)
    gap = (base - cut.center).detach().abs().sum(-1, keepdim=True)
    return ~(gap <= cut.radius + rounding(cut, base))


def rounding(cut: Cut, z: Tensor) -> Tensor:
    """Return how far rounding moves a projected point off the boundary, shape `(*lanes, 1)`."""
    size = (z.abs() + (torch.zeros_like(z) + cut.center).abs()).sum(-1, keepdim=True) + cut.radius
    return 8 * torch.finfo(z.dtype).eps * size.detach()


def _multiplier(cut: Cut, z: Tensor, gradient: Tensor) -> Tensor:
    """Return the ball's multiplier from the projection of a gradient step from z, `(*lanes, 1)`."""
    wide, point, step = ahead(cut, z, gradient)
    found = reach(wide, point)
    return torch.where(found.outside, found.loss / step, 0.0).to(z.dtype)


def tangent(cut: Cut, z: Tensor, gradient: Tensor, instead: Callable[..., Tensor]) -> Tangent:
    """Return the tangent space at a solution; `instead` as in `Carry`."""
    offset, distance = _room(cut, z)
    size, sign, near = offset.abs(), offset.sign(), distance <= cut.slack
    rough = torch.where(near, _multiplier(cut, z, gradient), 0.0)
    lower, upper = torch.zeros_like(size) + (cut.low - cut.center), torch.zeros_like(size) + (cut.high - cut.center)
    seat = (lower <= 0) & (upper >= 0)  # the centre lies within the bounds
    # The force that pulls a coordinate off the centre: if a bound is there, only the one away from the bound.
    pull = torch.where(lower >= 0, -gradient, torch.where(upper <= 0, gradient, gradient.abs()))
    still = near & seat & ~clear(size, rough - pull, cut.slack)
    bound = ~still & ~cut.box.free(z, left_over(gradient, rough * sign, rough))
    support = torch.where(near & ~still & ~bound, sign, 0.0)
    count = support.abs().sum(-1, keepdim=True)
    some, divisor = count > 0, count.clamp(min=1)
    pressed = -dot(support, gradient) / divisor
    active = near & some & ~clear(distance, pressed, cut.slack)
    on = active | (near & some & (distance <= 0))  # on the boundary, even if the gradient pulls z off it
    along = gradient + support * pressed
    full = near & ~some & (distance <= 0)
    holds = active | full
    # Where the ball is inactive, the bounds balance the whole gradient and nothing holds a coordinate at the centre.
    bound = torch.where(holds, bound, ~cut.box.free(z, gradient))
    still = holds & ~bound & (support == 0)
    support, held = support * active, bound | still
    mu = torch.where(active, pressed, torch.where(full, rough, 0.0))
    multiplier = left_over(gradient, mu * sign, mu)
    room = torch.minimum(z - cut.low, cut.high - z)

    def projector(v: Tensor) -> Tensor:
        return v * ~held - support * dot(support, v) / divisor

    def counts() -> Counts:
        inner = ~bound & (room > 0)
        tangential = projector(gradient) * inner
        # A coordinate at the centre is undecided if the force that pulls it off equals the ball's multiplier.
        rest = mu - pull
        edge = still & (negligible(rest, gradient, tangential) | (rest < 0))  # zero itself has no sign
        edge = edge | (holds & seat & ~bound & unresolved(size, rest, cut.slack, z))
        bounds = loose_bounds(cut, z, gradient, multiplier, tangential, inner) & ~still
        loose = on & negligible(pressed, gradient, torch.where(active, tangential, along * inner))
        loose = loose | (near & some & unresolved(distance, pressed, cut.slack, z))
        fixed = held.sum(-1) + active.squeeze(-1)
        open_ = torch.as_tensor(cut.low < cut.high, device=z.device)
        undecided = ((edge & open_) | bounds).sum(-1) + loose.squeeze(-1).long()
        return Counts(z.shape[-1] - fixed, fixed, undecided)

    normal = torch.where(still, 0.0, sign)
    twice = holds & held & seat & (size == 0) & (room <= 0)
    face = CutFace(cut, bound, still, active, normal, multiplier, twice, full, mu)
    return face.tangent(projector, 0.0, counts, instead)


def motion(cut: Cut, origin: Cut, z: Tensor) -> Tensor:
    """Return how far z moves with the constraints within the slack when `origin` becomes `cut`."""
    offset, distance = _room(origin, z)
    size, near = offset.abs(), distance <= origin.slack
    room = torch.minimum(z - origin.low, origin.high - z)
    still = near & (size <= torch.clamp(room, max=origin.slack)) & (size < size.amax(-1, keepdim=True))
    bound = ~still & (room <= origin.slack)
    none = torch.zeros_like(bound)
    normal = torch.where(still, 0.0, offset.sign())
    face = CutFace(origin, bound, still, near, normal, torch.zeros_like(z), none, none[..., :1], none[..., :1])
    return face.motion(cut, z)


def _room(cut: Cut, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return z minus the centre, and how far inside the boundary z lies less rounding, `(*lanes, 1)`."""
    offset = (z - cut.center).detach()
    inside = cut.radius - rounding(cut, z) - offset.abs().sum(-1, keepdim=True)
    return offset, as_tensor(inside).detach()
