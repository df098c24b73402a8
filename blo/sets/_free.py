"""No constraint."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._layout import Layout
from blo._term import Counts, Tangent
from blo.sets._base import Set
from blo.sets._rows import Rows


@dataclass(frozen=True, eq=False)
class Free(Set):
    """The whole space: P is the identity, K and N are zero."""

    def project(self, z: Tensor) -> Tensor:
        return z

    def rows(self, layout: Layout) -> Rows:
        return Rows.bounds(layout, -math.inf, math.inf)

    @property
    def rounds(self) -> bool:
        return False

    def retreat(self, z: Tensor, move: Tensor, step: Tensor | float) -> Tensor:
        return move

    def bounds(self, z: Tensor) -> tuple[float, float]:
        return -math.inf, math.inf

    def blocked(self, z: Tensor, gradient: Tensor) -> None:
        return None

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        def count() -> Counts:
            none = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
            return Counts(none + z.shape[-1], none, none)

        return Tangent(lambda v: v, 0.0, count, duals=lambda layout: {}, whole=True)
