"""The perturbations of an image, with the mask of the published code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

import blo


@dataclass(frozen=True, eq=False)
class PixelBox(blo.Box):
    """A box in which a pixel within `slack` of a bound is held, whatever its gradient (Zhang et al., ICML 2022)."""

    def loosened(self, slack: float) -> Self:
        return self

    def free(self, z: Tensor, gradient: Tensor) -> Tensor:
        inside: Tensor = (z > self.low + self.slack) & (z < self.high - self.slack)
        return inside
