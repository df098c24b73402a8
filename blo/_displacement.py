"""How far apart the two gradients of a central difference are taken: as far as they themselves bear."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo._autodiff import length as norm

T = TypeVar("T")

#: Share of the change above which what is seen nearby counts.
_GROSS = 0.5
#: Most rounds in which a displacement is made shorter, and unknowns up to which its first length grows with their norm.
_ROUNDS, _FEW = 4, 100


class Sides(NamedTuple):
    """Gradients on both sides of a point, at the distance h along a unit vector u.

    Attributes:
        change: `|grad(z + h u) - grad(z - h u)|`, about `2 h |H u|`, shape `(*lanes, 1)`.
        bend: `|grad(z + h u) + grad(z - h u) - 2 grad(z)|`, about `h^2` times a third derivative, likewise.
    """

    change: Tensor
    bend: Tensor

    @classmethod
    def of(cls, ahead: Tensor, behind: Tensor, here: Tensor, nearby: Tensor | None = None) -> Sides:
        """Measure the gradients at a point, on its sides and at a quarter of the distance ahead, shape `(*lanes, n)`.

        Far out, where a gradient grows like a cube or turns many times, it may do so alike on both sides and not bend.
        Then what it does nearby, `grad(z + h u / 4)`, is not a quarter of it. That is too inexact to count where it is.
        """
        change, bend = norm(ahead - behind), norm((ahead - here) + (behind - here))
        if nearby is None:
            return cls(change, bend)
        off = 4 * norm(8 * (nearby - here) - (ahead - behind))  # what a bend alone would make of itself
        return cls(change, torch.where((off > _GROSS * change) & (off > bend), off, bend))

    @property
    def share(self) -> Tensor:
        """Part of the change that is not linear, shape `(*lanes, 1)`; the difference errs by about its square."""
        return torch.where(self.change > 0, self.bend / self.change, 0.0)


def first(z: Tensor) -> Tensor:
    """Return the displacement to begin with, shape `(*lanes, 1)`, right for third derivatives of size one.

    It is `eps^(1/3)` times the length of z, at least 1. Of many unknowns, such as the weights of a network, a step
    that grows with their number leads out of the region in which the gradient is smooth; so they count as a hundred.
    """
    few = min(1.0, (_FEW / max(1, z.shape[-1])) ** 0.5)
    length: Tensor = torch.finfo(z.dtype).eps ** (1 / 3) * (few * norm(z)).clamp(min=1.0)
    return length


def adapted(
    take: Callable[[Tensor], tuple[T, Sides]], length: Tensor, rounding: Callable[[], Tensor]
) -> tuple[T, Tensor]:
    """Return a central difference and its displacement, made shorter where the gradients bend too much over it.

    With the scale l over which the curvature `c = |H u|` changes by its own size, read off the bend, and the rounding s
    of a gradient, the error is about `s / h + c h^2 / (6 l^2)`, which is least for `h^3 = 3 s l^2 / c`. Where all is
    smooth enough at first nothing is taken again. A shorter displacement that bends no less is not used: there the
    bend is rounding, or one kink after the other.

    Args:
        take: returns the difference for displacements of shape `(*lanes, 1)`, and what was seen on the sides.
        length: the displacements to begin with.
        rounding: measures s, shape `(*lanes, 1)`; called where something bends.
    """
    eps = torch.finfo(length.dtype).eps
    found, sides = take(length)
    for _ in range(_ROUNDS):
        share = sides.share
        steep = share > 4 * eps ** (1 / 3)
        if all_true(~steep):
            break
        scale, curvature = length / (2 * share), sides.change / (2 * length)
        noise = torch.maximum(rounding(), eps * curvature * scale)
        best = (3 * noise * scale.square() / curvature) ** (1 / 3)
        shorter = torch.where(steep & (best < 0.5 * length), best, length)
        if all_true(shorter == length):
            break
        again, sides = take(shorter)
        worse = ~(sides.share < 1.2 * share) & (shorter < length)
        if not all_true(~worse):
            length = torch.where(worse, length, shorter)
            return take(length)[0], length
        found, length = again, shorter
    return found, length


def along(
    gradient: Callable[[Tensor], Tensor], z: Tensor, slope: Tensor, unit: Tensor, h: Tensor, *, look: bool
) -> tuple[Tensor, Sides]:
    """Return the central difference of a gradient along unit vectors, shape `(*lanes, n)`, and what bends.

    Args:
        gradient: of the objective.
        z: the point.
        slope: the gradient there.
        unit: shape `(*lanes, n)`.
        h: displacement, shape `(*lanes, 1)`.
        look: whether the displacement is in question: one gradient more.
    """
    ahead, behind = (gradient(z + side * h * unit).detach() for side in (1, -1))
    nearby = gradient(z + 0.25 * h * unit).detach() if look else None
    return (ahead - behind) / (2 * h), Sides.of(ahead, behind, slope, nearby)


def rounding(gradient: Callable[[Tensor], Tensor], z: Tensor, slope: Tensor) -> Tensor:
    """Return how much the gradient changes when z does by its own rounding, shape `(*lanes, 1)`."""
    beside = gradient(z * (1 + 2 * torch.finfo(z.dtype).eps)).detach()
    return norm(beside - slope)


def split(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors, shape `(*lanes, n)`, and lengths, shape `(*lanes, 1)`; zero vectors stay as they are."""
    length = norm(direction)
    return direction / torch.where(length > 0, length, 1.0), length
