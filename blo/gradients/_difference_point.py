"""Products by central differences of first-order gradients, where a second backward pass does not exist or pay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blo._autocast import suspended
from blo._bound import Bound
from blo.errors import StructureError
from blo.gradients._first_order_point import FirstOrderPoint


class DifferencePoint(FirstOrderPoint):
    """`H v = (grad(z + h v) - grad(z - h v)) / 2h`, and `B^T q` likewise from the gradients in theta.

    The displacement `|h v|` is `eps^(1/3) * max(1, |z|)` in each lane, which balances the rounding of the gradients,
    `eps / h`, against the truncation, `h^2`; eps is that of the dtype. So a product is known to about `eps^(2/3)`:
    4e-11 in double and 2e-5 in single precision, for gradients and third derivatives of size one.
    """

    def __init__(self, bound: Bound, z: Tensor, leaves: Sequence[Tensor]) -> None:
        if not bound.symmetric:
            raise StructureError(
                "products='finite-difference' give the Jacobian of a fixed-point problem instead of its transpose, "
                "which the hypergradient needs. Use products='reverse'."
            )
        super().__init__(bound, z, leaves)
        # A few products enter a residual. Iterates beyond this accuracy differ by the noise of the products alone.
        self.noise = 10 * torch.finfo(z.dtype).eps ** (2 / 3)

    def hessian(self, direction: Tensor) -> Tensor:
        return self._along_z(direction, 1.0)

    def along(self, q: Tensor) -> list[Tensor | None]:
        return self._along(q, 1.0)

    def error(self, q: Tensor) -> float:
        """Return `|D(2h) - D(h)| / |D(h)|` of `H q` or of `B^T q`, whichever is larger.

        That is about the relative error where rounding makes it, and three times it where truncation does.
        """
        near = [part for part in self._along(q, 1.0) if part is not None]
        far = [part for part in self._along(q, 2.0) if part is not None]
        return max(_gap(near, far), _gap([self._along_z(q, 1.0)], [self._along_z(q, 2.0)]))

    def _along_z(self, direction: Tensor, stretch: float) -> Tensor:
        h = stretch * self._step(direction)
        at_rest = self._bound.detach()
        with suspended():
            ahead = at_rest.gradient(self._z + h * direction).detach()
            return (ahead - at_rest.gradient(self._z - h * direction).detach()) / (2 * h)

    def _along(self, q: Tensor, stretch: float) -> list[Tensor | None]:
        h = stretch * self._step(q)
        inputs = [self._leaves[i] for i in self._live]
        if not inputs:
            return [None] * len(self._leaves)
        with torch.enable_grad(), suspended():
            sides = self._bound.sides(self._z, h * q)
        # Each lane has its own step, so its share of the sum over lanes is weighted before the sum is taken.
        weight = (0.5 / h).squeeze(-1)
        ahead, behind = (
            torch.autograd.grad(side, inputs, weight, allow_unused=True) if side.requires_grad else [None] * len(inputs)
            for side in sides
        )
        pairs = zip(ahead, behind, strict=True)
        return self._spread([None if a is None or b is None else a - b for a, b in pairs])

    def _step(self, direction: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        scale = torch.linalg.vector_norm(self._z, dim=-1, keepdim=True).clamp(min=1.0)
        # A lane whose direction is zero has the product zero, whatever its step.
        step: Tensor = torch.finfo(self._z.dtype).eps ** (1 / 3) * scale / torch.where(length > 0, length, 1.0)
        return step


def _gap(near: Sequence[Tensor], far: Sequence[Tensor]) -> float:
    gap = sum(float((a - b).double().square().sum()) for a, b in zip(near, far, strict=True)) ** 0.5
    size = sum(float(a.double().square().sum()) for a in near) ** 0.5
    return gap / size if size else 0.0
