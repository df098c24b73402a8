"""What an attacker may do to an image: a norm, a budget and the range of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

import blo
from adv_train import ranks
from adv_train.errors import UserError
from adv_train.pixels import PixelBox
from adv_train.values import Checked, NotNegative

Norm: TypeAlias = Literal["linf", "l2", "l1"]
_ORDERS: Final[dict[str, float]] = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
NORMS: Final[Mapping[str, str]] = {
    "linf": "The largest change of a pixel; 8/255 is usual for CIFAR.",
    "l2": "The Euclidean length of the change; 128/255 is usual for CIFAR.",
    "l1": "The sum of the changes of all pixels; 12 is usual for CIFAR.",
}


@dataclass(frozen=True)
class Threat(Checked):
    """Perturbations delta of an image x: `|delta| <= eps` in a norm over all its pixels, `low <= x + delta <= high`.

    Attributes:
        norm: `"linf"`, `"l2"` or `"l1"`, over all pixels and channels of an image; see `adv-train list norms`.
        eps: Budget in that norm, in the unit of the images.
        low: Smallest value of a pixel.
        high: Largest value of a pixel.

    Raises:
        UserError: If there is no such norm, the budget is negative, too large or no number, or the range is empty.
    """

    norm: Norm
    eps: NotNegative
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "linf" and self.eps > self.high - self.low:
            raise UserError(
                f"`eps` must not exceed the range of the images, [{self.low:g}, {self.high:g}], but is {self.eps}. "
                "Try 8/255."
            )
        if not self.low < self.high:
            raise UserError(f"`low` must be below `high`, but `low` is {self.low} and `high` is {self.high}.")

    @property
    def direction(self) -> Literal["sign", "normalized"]:
        """The direction of an attack's step, by its name in `blo`: the sign of the gradient, or the gradient
        divided by its 2-norm.

        In linf and l2 it is the direction of steepest ascent. In l1, steepest ascent changes few pixels, and training
        against it overfits catastrophically; training against a step along the gradient does not (Fast-EG-l1, Jiang et
        al., ICML 2023).
        """
        return "sign" if self.norm == "linf" else "normalized"

    def matches(self, other: Threat) -> bool:
        """Return whether both threats are equal, up to the rounding of a budget that was written as text."""
        same = (self.norm, self.low, self.high) == (other.norm, other.low, other.high)
        return same and abs(self.eps - other.eps) < 1e-9

    def check_images(self, shape: Sequence[int]) -> None:
        """Check that the budget does not exceed the largest distance between two images of this shape.

        Args:
            shape: Shape of one image, `(channels, height, width)`.

        Raises:
            UserError: If it is larger, so that every image could become any other; the message gives the distance.
        """
        farthest = self.largest(shape, self.high - self.low)
        if self.eps > farthest:
            size = " x ".join(map(str, shape))
            raise UserError(
                f"`eps` must not exceed {farthest:.4g} in {self.norm}, the distance between a black and a white image "
                f"of size {size}, but is {self.eps:.4g}. {NORMS[self.norm]}"
            )

    def set(self, x: Tensor) -> blo.sets.Set:
        """Return the set of allowed perturbations of these images, one problem per image, without a host sync."""
        # Images lie in their range, so the set is never empty. Validating it would make the host wait in every step.
        if self.norm == "linf":
            return PixelBox.around(x, self.eps, self.low, self.high, validate=False)
        ball = blo.L2Ball if self.norm == "l2" else blo.L1Ball
        return ball(self.eps, low=self.low - x, high=self.high - x, validate=False)

    def noise(self, x: Tensor, width: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw a perturbation of each image uniformly in the ball, without regard to the range of images.

        Args:
            x: Images, shape `(batch, ...)`.
            width: Radius of the ball, in units of eps.
            generator: Source of randomness, on the images' device.
        """
        radius = width * self.eps
        if self.norm == "linf":
            return ranks.uniform(x, -radius, radius, generator=generator)
        return radius * _in_unit_ball(x, _ORDERS[self.norm], generator)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a perturbation of each image uniformly in the ball, and project it onto the allowed perturbations.

        Args:
            x: Images, shape `(batch, ...)`.
            generator: Source of randomness, on the images' device.
        """
        return self.project(x, self.noise(x, generator=generator))

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return the nearest allowed perturbation of each image.

        Args:
            x: Images, shape `(batch, ...)`.
            delta: Perturbations, of the same shape.
        """
        return self.set(x.flatten(1)).project(delta.flatten(1)).view_as(x)

    def distance(self, delta: Tensor) -> Tensor:
        """Return the norm of each perturbation, shape `(batch,)`, from perturbations of shape `(batch, ...)`."""
        size: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=_ORDERS[self.norm], dim=1)
        return size

    def largest(self, shape: Sequence[int], change: float) -> float:
        """Return the norm of the perturbation that changes every pixel of an image of this shape by `change`."""
        return change * math.pow(math.prod(shape), 1 / _ORDERS[self.norm])

    def contains(self, x: Tensor, delta: Tensor, slack: float = 0.0) -> Tensor:
        """Return which perturbations are allowed, booleans of shape `(batch,)`; a perturbation with NaN is not.

        Args:
            x: Images, shape `(batch, ...)`.
            delta: Perturbations, of the same shape.
            slack: How far a perturbation may exceed the budget and the range, for rounding.
        """
        image = (x + delta).flatten(1)
        inside = (image >= self.low - slack) & (image <= self.high + slack)
        return (self.distance(delta) <= self.eps + slack) & inside.all(1)


def _in_unit_ball(x: Tensor, order: float, generator: torch.Generator | None) -> Tensor:
    """Draw a point per lane uniformly in the unit ball of the p-norm, for p = 1 or 2.

    If the coordinates g_i are independent with density proportional to exp(-|t|^p), and Z is exponential with mean 1,
    then g / (sum_i |g_i|^p + Z)^(1/p) is uniform in the ball (Barthe et al., 2005, "A probabilistic approach to the
    geometry of the l_p^n-ball").
    """
    if order == 2:
        size = ranks.normal(x, 0.5**0.5, generator=generator)
    else:
        sign = ranks.coins(x, generator=generator) * 2 - 1
        size = sign * ranks.exponential(x, generator=generator)
    total = size.flatten(1).abs().pow(order).sum(1) + ranks.exponential(x.new_empty(len(x)), generator=generator)
    return size / total.pow(1 / order).view(-1, *(1,) * (x.ndim - 1))
