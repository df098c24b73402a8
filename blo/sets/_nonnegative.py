"""The non-negative orthant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._layout import Layout
from blo._term import Tangent
from blo.sets._base import Set
from blo.sets._box import Box
from blo.sets._rows import Rows


@dataclass(frozen=True, eq=False)
class NonNegative(Set):
    """`{ z : z >= 0 }`, the box from 0 to infinity.

    Attributes:
        slack: largest distance from zero at which a coordinate may be active, see `Set`.

    Raises:
        ValueError: when the problem is solved, if `slack` is negative.
    """

    slack: float = 1e-7

    @property
    def box(self) -> Box:
        """The same set as a box."""
        return Box(0.0, math.inf, slack=self.slack)

    def project(self, z: Tensor) -> Tensor:
        return self.box.project(z)

    def rows(self, layout: Layout) -> Rows:
        return self.box.rows(layout)

    @property
    def rounds(self) -> bool:
        return False

    def retreat(self, z: Tensor, move: Tensor, step: Tensor | float) -> Tensor:
        return self.box.retreat(z, move, step)

    def bounds(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        return self.box.bounds(z)

    def from_logarithms(self, logarithms: Tensor) -> Tensor:
        # `exp` underflows to zero, where a multiplicative step could never move the coordinate again.
        return logarithms.exp().clamp(min=torch.finfo(logarithms.dtype).tiny)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        return self.box.tangent(z, gradient)
