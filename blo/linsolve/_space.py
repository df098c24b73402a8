"""The inner product of the vectors of a linear system: the Euclidean one, or one that the user gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo._vectors import dot, norm

#: `(a, b)` -> the inner product of each pair of vectors, shape `(*axes, 1)` for vectors of shape `(*axes, n)`.
InnerProduct: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Space:
    """Vectors of shape `(*lanes, n)` with an inner product.

    A linear solver compares and branches on inner products and norms only. So if each process holds some of the
    coordinates and `inner` sums over all processes, every process makes the same decisions.

    Attributes:
        inner: the inner product; None for the Euclidean one.
    """

    inner: InnerProduct | None = None

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the inner product of each lane, shape `(*lanes, 1)`."""
        return dot(a, b) if self.inner is None else self.inner(a, b)

    def norm(self, v: Tensor) -> Tensor:
        """Return the norm of each lane, shape `(*lanes, 1)`."""
        if self.inner is None:
            return norm(v)
        return self.inner(v, v).clamp(min=0).sqrt()  # rounding may make the square of a small norm negative

    def size(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return a length to divide b by, with 1 in place of 0, and where b is 0; both of shape `(*lanes, 1)`.

        It is `max|b|` in the Euclidean space, and the norm otherwise. The norm of b divided by it neither overflows nor
        underflows.
        """
        # On a CPU, torch's norm of order infinity takes twenty times as long as these two operations.
        size = b.abs().amax(-1, keepdim=True) if self.inner is None else self._safe_norm(b)
        zero = size <= 0  # a norm; torch compares by `==` in Python, at twice the cost
        return torch.where(zero, 1.0, size), zero

    def shares(self, basis: Tensor, w: Tensor) -> Tensor:
        """Return the inner products of w with each vector of a basis `(*lanes, k, n)`, shape `(*lanes, k)`."""
        if self.inner is None:
            return (basis @ w.unsqueeze(-1)).squeeze(-1)
        return self.inner(basis.movedim(-2, 0), w).squeeze(-1).movedim(0, -1)

    def _safe_norm(self, b: Tensor) -> Tensor:
        """Return the norm where the square of an entry may underflow or overflow."""
        found = self.norm(b)
        if all_true((found > 0) & torch.isfinite(found)):
            return found
        scale = torch.finfo(b.dtype).tiny ** 0.5
        large, small = self.norm(scale * b) / scale, scale * self.norm(b / scale)
        return torch.where(torch.isfinite(found), torch.where(found > 0, found, small), large)


#: The space of solvers that assemble or store whole vectors, and the default of the others.
EUCLIDEAN = Space()
