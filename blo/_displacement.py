"""The displacement of a central difference of gradients, chosen from the gradients themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo._vectors import length as norm

T = TypeVar("T")

#: Share of the change above which the test at a quarter of the displacement counts.
_GROSS = 0.5
#: Maximum number of rounds that shorten a displacement, and the number of unknowns up to which the first one grows.
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

        Over a long displacement a gradient that grows like a cube, or oscillates, may change equally on both sides, so
        that there is no bend. Then the change up to `z + h u / 4` is not a quarter of the whole change. This test is
        inexact, so it counts only if the difference is large.
        """
        # The differences come first: those of close gradients are exact, while the sum of two gradients would be
        # rounded before `2 here` cancels most of it.
        change, bend = norm(ahead - behind), norm((ahead - here) + (behind - here))
        if nearby is None:
            return cls(change, bend)
        off = 4 * norm(8 * (nearby - here) - (ahead - behind))  # for a quadratic gradient it equals `bend`
        return cls(change, torch.where((off > _GROSS * change) & (off > bend), off, bend))

    @property
    def share(self) -> Tensor:
        """Part of the change that is not linear, shape `(*lanes, 1)`; the difference errs by about its square."""
        return torch.where(self.change > 0, self.bend / self.change, 0.0)

    @property
    def steep(self) -> Tensor:
        """Whether the displacement may be too long, booleans of shape `(*lanes, 1)`."""
        # Below this the error, about the square of the share, is of the order eps^(2/3) that central differences reach.
        found: Tensor = self.share > 4 * torch.finfo(self.change.dtype).eps ** (1 / 3)
        return found


def first(z: Tensor) -> Tensor:
    """Return the displacement to begin with, shape `(*lanes, 1)`, right for third derivatives of size one.

    It is `eps^(1/3)` times the length of z, at least 1. More than a hundred unknowns, such as the weights of a network,
    count as a hundred: a step that grows with their number leads out of the region in which the gradient is smooth.
    """
    few = min(1.0, (_FEW / max(1, z.shape[-1])) ** 0.5)
    length: Tensor = torch.finfo(z.dtype).eps ** (1 / 3) * (few * norm(z)).clamp(min=1.0)
    return length


def adapted(
    take: Callable[[Tensor], tuple[T, Sides]], length: Tensor, rounding: Callable[[], Tensor]
) -> tuple[T, Tensor]:
    """Return a central difference and its displacement, made shorter where the gradients bend too much over it.

    With the scale l over which the curvature `c = |H u|` changes by its own size, estimated from the bend, and the
    rounding s of a gradient, the error is about `s / h + c h^2 / (6 l^2)`, which is least for `h^3 = 3 s l^2 / c`. If
    the first displacement is good enough, the difference is not recomputed. A shorter displacement that does not reduce
    the bend is rejected: there the bend is rounding, or a sequence of kinks.

    Args:
        take: returns the difference for displacements of shape `(*lanes, 1)`, and the gradients on the sides.
        length: the first displacements.
        rounding: measures s, shape `(*lanes, 1)`; called only if a displacement may be too long.
    """
    eps = torch.finfo(length.dtype).eps
    found, sides = take(length)
    for _ in range(_ROUNDS):
        share, steep = sides.share, sides.steep
        if all_true(~steep):
            break
        scale, curvature = length / (2 * share), sides.change / (2 * length)
        # The measured rounding may be zero by chance. Over the scale l a gradient changes by c l, and at least eps of
        # that is lost.
        noise = torch.maximum(rounding(), eps * curvature * scale)
        best = (3 * noise * scale.square() / curvature) ** (1 / 3)
        shorter = torch.where(steep & (best < 0.5 * length), best, length)
        if all_true(shorter == length):
            break
        again, sides = take(shorter)
        # Negated, so that NaN counts as worse.
        worse = ~(sides.share < 1.2 * share) & (shorter < length)
        if not all_true(~worse):
            length = torch.where(worse, length, shorter)
            return take(length)[0], length
        found, length = again, shorter
    return found, length


def along(
    gradient: Callable[[Tensor], Tensor], z: Tensor, slope: Tensor, unit: Tensor, h: Tensor, *, look: bool
) -> tuple[Tensor, Sides]:
    """Return the central difference of a gradient along unit vectors, shape `(*lanes, n)`, and its `Sides`.

    Args:
        gradient: of the objective.
        z: the point.
        slope: the gradient there.
        unit: shape `(*lanes, n)`.
        h: displacement, shape `(*lanes, 1)`.
        look: whether the displacement is to be tested, which takes one more gradient.
    """
    ahead, behind = (gradient(z + side * h * unit).detach() for side in (1, -1))
    nearby = gradient(z + 0.25 * h * unit).detach() if look else None
    return (ahead - behind) / (2 * h), Sides.of(ahead, behind, slope, nearby)


def rounding(gradient: Callable[[Tensor], Tensor], z: Tensor, slope: Tensor) -> Tensor:
    """Return the change of the gradient when z changes by its own rounding, shape `(*lanes, 1)`."""
    beside = gradient(z * (1 + 2 * torch.finfo(z.dtype).eps)).detach()
    return norm(beside - slope)


def split(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors, shape `(*lanes, n)`, and lengths, shape `(*lanes, 1)`; zero vectors stay as they are."""
    length = norm(direction)
    return direction / torch.where(length > 0, length, 1.0), length
