"""The perturbations of an image in linf, with the rule for active pixels of the published code of Fast-BAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

import blo


@dataclass(frozen=True, eq=False)
class PixelBox(blo.Box):
    """A box in which a pixel within `slack` of a bound is active, whatever the sign of its gradient.

    The published code of Fast-BAT (Zhang et al., ICML 2022) masks the implicit gradient by this rule.
    """

    def loosened(self, slack: float) -> Self:
        return self

    def free(self, z: Tensor, gradient: Tensor) -> Tensor:
        inside: Tensor = (z > self.low + self.slack) & (z < self.high - self.slack)
        return inside
