"""What an attacker may do to an image: a norm, a budget and the range of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from adv_train.errors import UserError, unknown

Norm: TypeAlias = Literal["linf", "l2", "l1"]
_ORDERS: Final[dict[str, float]] = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
NORMS: Final = tuple(_ORDERS)


@dataclass(frozen=True)
class Threat:
    """Perturbations delta of an image x: `|delta| <= eps` in a norm over all its pixels, `low <= x + delta <= high`.

    Attributes:
        norm: `"linf"`, `"l2"` or `"l1"`.
        eps: Budget in that norm, in the unit of the images.
        low: Smallest value of a pixel.
        high: Largest value of a pixel.

    Raises:
        UserError: When there is no such norm, the budget is negative or no number, or the range is empty.
    """

    norm: Norm
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in _ORDERS:
            raise unknown("norm", str(self.norm), NORMS)
        if not 0 <= self.eps < float("inf"):
            raise UserError(f"`eps` must be a number of at least 0, but is {self.eps}.")
        if not self.low < self.high:
            raise UserError(f"Images need a range, but `low` is {self.low} and `high` is {self.high}.")

    def distance(self, delta: Tensor) -> Tensor:
        """Return the norm of each perturbation, shape `(batch,)`, from `(batch, ...)`."""
        size: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=_ORDERS[self.norm], dim=1)
        return size

    def contains(self, x: Tensor, delta: Tensor, slack: float = 0.0) -> Tensor:
        """Tell which perturbations are allowed, booleans of shape `(batch,)`; NaN is not.

        Args:
            x: Images, shape `(batch, ...)`.
            delta: Of the same shape.
            slack: By how much the budget and the range may be exceeded, for rounding.
        """
        image = (x + delta).flatten(1)
        inside = (image >= self.low - slack) & (image <= self.high + slack)
        return (self.distance(delta) <= self.eps + slack) & inside.all(1)
