"""Products by central differences of first-order gradients, where a second backward pass does not exist or pay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blo._autocast import suspended
from blo._bound import Bound
from blo._displacement import Sides, adapted, first
from blo.errors import StructureError
from blo.gradients._first_order_point import FirstOrderPoint


class DifferencePoint(FirstOrderPoint):
    """`H v = (grad(z + h v) - grad(z - h v)) / 2h`, and `B^T q` likewise from the gradients in theta.

    The displacement `|h v|` of each lane balances the rounding of the gradients against the truncation. It begins with
    `eps^(1/3) * max(1, |z|)`, which is right for third derivatives of size one, and is made shorter where the gradients
    on the two sides and at z are not nearly on a line. That is seen at the first product with H, whose displacement
    serves all others, and at the cross term. So a product is known to about `eps^(2/3)` where the rounding of the
    gradients allows it: 4e-11 in double and 2e-5 in single precision.
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
        self._length: Tensor | None = None

    def hessian(self, direction: Tensor) -> Tensor:
        unit = _unit(direction)
        if self._length is None:
            found, self._length = adapted(lambda h: self._along_z(unit, h), first(self._z), self._rounding)
        else:
            found = self._along_z(unit, self._length)[0]
        return found * _size(direction)

    def along(self, q: Tensor) -> list[Tensor | None]:
        length = first(self._z) if self._length is None else self._length
        if not self._live:
            return [None] * len(self._leaves)
        return adapted(lambda h: self._along(q, h), length, self._rounding)[0]

    def error(self, q: Tensor) -> float:
        """Return `|D(2h) - D(h)| / |D(h)|` of `H q` or of `B^T q`, whichever is larger.

        That is about the relative error where rounding makes it, and three times it where truncation does.
        """
        unit, start = _unit(q), first(self._z) if self._length is None else self._length
        image, h = adapted(lambda h: self._along_z(unit, h), start, self._rounding)
        gap = _gap([image], [self._along_z(unit, 2 * h)[0]])
        if not self._live:
            return gap
        parts, h = adapted(lambda h: self._along(q, h), start, self._rounding)
        near, far = ([part for part in found if part is not None] for found in (parts, self._along(q, 2 * h)[0]))
        return max(gap, _gap(near, far))

    def _along_z(self, unit: Tensor, h: Tensor) -> tuple[Tensor, Sides]:
        at_rest = self._bound.detach()
        with suspended():
            ahead, behind = (at_rest.gradient(self._z + side * h * unit).detach() for side in (1, -1))
        return (ahead - behind) / (2 * h), Sides.of(ahead, behind, self.optimality.slope)

    def _along(self, q: Tensor, h: Tensor) -> tuple[list[Tensor | None], Sides]:
        inputs = [self._leaves[i] for i in self._live]
        with torch.enable_grad(), suspended():
            shift = (h * _unit(q)).requires_grad_()
            sides = self._bound.sides(self._z, shift)
        # Each lane has its own step, so its share of the sum over lanes is weighted before the sum is taken.
        weight = _size(q) / (2 * h)
        slopes, parts = [], []
        for sign, side in zip((1, -1), sides, strict=True):
            slope, *found = torch.autograd.grad(
                side, [shift, *inputs], weight.squeeze(-1), retain_graph=True, allow_unused=True
            ) if side.requires_grad else [None] * (1 + len(inputs))
            slopes.append(torch.zeros_like(q) if slope is None else sign * slope / torch.where(weight > 0, weight, 1.0))
            parts.append(found)
        pairs = zip(*parts, strict=True)
        spread = self._spread([None if a is None or b is None else a - b for a, b in pairs])
        return spread, Sides.of(slopes[0], slopes[1], self._bound.sided_slope(self.optimality.slope))

    def _rounding(self) -> Tensor:
        """Return how much the gradient changes when z does by its own rounding, shape `(*lanes, 1)`."""
        with suspended():
            beside = self._bound.detach().gradient(self._z * (1 + 2 * torch.finfo(self._z.dtype).eps)).detach()
        return torch.linalg.vector_norm(beside - self.optimality.slope, dim=-1, keepdim=True)


def _size(direction: Tensor) -> Tensor:
    return torch.linalg.vector_norm(direction, dim=-1, keepdim=True)


def _unit(direction: Tensor) -> Tensor:
    """Return the direction with length one; zero stays, and its product is zero whatever the displacement."""
    length = _size(direction)
    return direction / torch.where(length > 0, length, 1.0)


def _gap(near: Sequence[Tensor], far: Sequence[Tensor]) -> float:
    gap = sum(float((a - b).double().square().sum()) for a, b in zip(near, far, strict=True)) ** 0.5
    size = sum(float(a.double().square().sum()) for a in near) ** 0.5
    return gap / size if size else 0.0
