"""The Euclidean ball cut by bounds."""

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
from blo.sets._norm import euclidean_norm as norm


class Reach(NamedTuple):
    """The t at which `clip(center + t (z - center))` meets the sphere.

    Attributes:
        outside: lanes in which t is below 1, so that the nearest point lies on the sphere.
        t: shape `(*lanes, 1)`; meaningless where not outside.
        nearest: the nearest point to z, shape `(*lanes, n)`; NaN where there is none.
    """

    outside: Tensor
    t: Tensor
    nearest: Tensor


def reach(cut: Cut, z: Tensor) -> Reach:
    """Find the nearest point of the ball within the bounds."""
    ray, radius = Ray.of(cut, z), torch.zeros_like(z[..., :1]) + cut.radius
    unit = torch.where(radius > 0, radius, 1.0).detach()  # the square of a large radius would overflow
    share, size = radius / unit, (ray.offset.abs() / unit).detach()
    inner, outer = ((side / unit).detach() for side in (ray.inner, ray.outer))
    behind = outer.clamp(max=0.0).square().sum(-1, keepdim=True)  # of coordinates that are constant on the path
    inner, outer = inner.clamp(min=0.0), outer.clamp(min=0.0)
    none = torch.zeros_like(size)
    early = torch.where(inner > 0, inner / size, none).clamp(max=1.0)
    late = torch.where(outer > 0, outer / size, none).clamp(max=1.0)

    def within(t: Tensor) -> Tensor:
        at = torch.minimum(torch.maximum(t * size, inner), outer)
        return at.square().sum(-1, keepdim=True) + behind <= share.detach().square()

    piece = Piece.find(early, late, torch.ones_like(radius), within)
    # Recompute t from the free coordinates, so that only smooth operations are differentiated: the squares of the held
    # ones, and t^2 times those of the free ones, add up to radius^2.
    held = torch.where(piece.free, 0.0, torch.where(piece.full, ray.outer, ray.inner)) / unit
    left = share.square() - held.square().sum(-1, keepdim=True)
    length = norm(torch.where(piece.free, ray.offset, 0.0))
    # The root has an infinite derivative at zero, and rounding may make `left` negative.
    root = torch.where(left > 0, left, 1.0).sqrt() * (left > 0)
    t = torch.where(length > 0, unit * root / torch.where(length > 0, length, 1.0), piece.middle)
    inside = cut.box.project(z)
    outside = norm(inside - cut.center) > radius
    on = place(cut, ray, piece, cut.center + ray.offset * t)
    return Reach(outside, t, torch.where(is_empty(cut, z), torch.nan, torch.where(outside, on, inside)))


def is_empty(cut: Cut, z: Tensor) -> Tensor:
    """Return where the ball has no point within the bounds, or the radius is negative or NaN, shape `(*lanes, 1)`."""
    base = cut.base(z)
    return ~((norm(base - cut.center).detach() <= cut.radius + rounding(cut, base)) & (as_tensor(cut.radius) >= 0))


def rounding(cut: Cut, z: Tensor) -> Tensor:
    """Return how far rounding moves a projected point off the sphere, shape `(*lanes, 1)`."""
    return 8 * torch.finfo(z.dtype).eps * (norm(z) + cut.radius).detach()


def _multiplier(cut: Cut, z: Tensor, gradient: Tensor) -> Tensor:
    """Return the ball's multiplier from the projection of a gradient step from z, `(*lanes, 1)`."""
    wide, point, step = ahead(cut, z, gradient)
    found = reach(wide, point)
    t = found.t.clamp(min=torch.finfo(point.dtype).tiny ** 0.5, max=1.0)
    # On free coordinates of the projection x, point - x = step mu (x - center) and x - center = t (point - center).
    mu = torch.where(found.outside, (1 / t - 1) / step, 0.0)
    # An infinite multiplier, times the zero offset of a coordinate at the centre, would give NaN.
    return mu.clamp(max=torch.finfo(z.dtype).max).to(z.dtype)


def tangent(cut: Cut, z: Tensor, gradient: Tensor, instead: Callable[..., Tensor]) -> Tangent:
    """Return the tangent space at a solution; `instead` as in `Carry`."""
    offset, size, room = _room(cut, z)
    near = room <= cut.slack
    rough = torch.where(near, _multiplier(cut, z, gradient), 0.0)
    spread = offset.abs() + z.abs()
    within = cut.box.free(z, left_over(gradient, rough * offset, rough * spread))
    some = within.any(-1, keepdim=True)
    part = torch.where(within, offset, 0.0)
    length = norm(part)
    divisor = torch.where(length > 0, length, 1.0)
    u = part / divisor
    slope = dot(gradient, u)
    pressed, across = -slope, (gradient - u * slope) * within
    # Free coordinates meet the sphere at an angle, so the distance along them is longer. The ball still counts as near.
    distance = torch.where(length > 0, room * size / divisor, room).clamp(max=cut.slack).detach()
    active = near & some & ~clear(distance, pressed, cut.slack)
    on = active | (near & some & (room <= 0))  # on the sphere, even if the gradient pulls z off it
    # If the coordinates at bounds use up the radius, or it is zero, the ball fixes the free coordinates as well.
    # r^2 - |held|^2 is known to eps r^2, so its root only to sqrt(eps) r.
    taken = norm(torch.where(within, 0.0, offset)) * (8 * torch.finfo(z.dtype).eps) ** 0.5
    point = active & (length <= torch.maximum(rounding(cut, z), taken).detach())
    curvature = torch.where(active & ~point, pressed / divisor, 0.0)
    mu = torch.where(some, curvature, rough)
    multiplier = left_over(gradient, mu * offset, mu * spread)
    u, free = u * (active & ~point), within & ~point

    def projector(v: Tensor) -> Tensor:
        return v * free - u * dot(u, v)

    def count() -> Counts:
        fixed = (~free).sum(-1) + (active & ~point).squeeze(-1)
        inner = within & (torch.minimum(z - cut.low, cut.high - z) > 0)
        undecided = point | (on & negligible(pressed, gradient, across * inner))
        undecided = undecided | (near & some & unresolved(distance, pressed, cut.slack, z))
        loose = loose_bounds(cut, z, gradient, multiplier, projector(gradient) * inner, inner)
        return Counts(z.shape[-1] - fixed, fixed, undecided.squeeze(-1).long() + loose.sum(-1))

    # From radius zero, z moves in the direction of the force.
    pull = torch.where(point, norm(gradient * within), 1.0)
    toward = -gradient * within / torch.where(pull > 0, pull, 1.0)
    normal = torch.where(point, toward, offset / torch.where(size > 0, size, 1.0))
    full = near & ~some & (room <= 0)
    none = torch.zeros_like(within)
    # From |z - c|^2 / 2 to |z - c|, whose gradient has length one; at radius zero it takes the whole force.
    pressed = torch.where(point, pull, mu * size)
    face = CutFace(cut, ~within, none, active, normal, multiplier, none, full, pressed)
    return face.tangent(projector, curvature, count, instead)


def motion(cut: Cut, origin: Cut, z: Tensor) -> Tensor:
    """Return how far z moves with the constraints within the slack when `origin` becomes `cut`."""
    offset, size, room = _room(origin, z)
    bound = torch.minimum(z - origin.low, origin.high - z) <= origin.slack
    none = torch.zeros_like(bound)
    normal, near = offset / torch.where(size > 0, size, 1.0), room <= origin.slack
    face = CutFace(origin, bound, none, near, normal, torch.zeros_like(z), none, none[..., :1], none[..., :1])
    return face.motion(cut, z)


def _room(cut: Cut, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return z minus the centre, its norm, and how far inside the sphere z lies less rounding."""
    offset = z - cut.center
    size = norm(offset)
    return offset, size, (cut.radius - rounding(cut, z) - size).detach()
