"""Products by central differences of gradients, for objectives without a second backward pass or with a costly one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blo import tree
from blo._autocast import suspended
from blo._autodiff import all_true
from blo._displacement import Sides, adapted, along, first, rounding, split
from blo._problem_at_theta import ProblemAtTheta
from blo._vectors import length
from blo.errors import StructureError
from blo.gradients._finer import Finer, finer, like
from blo.gradients._first_order_point import FirstOrderPoint
from blo.gradients._two_values import slope_between, two_values, value_beside


class DifferencePoint(FirstOrderPoint):
    """`H v = (grad(z + h v) - grad(z - h v)) / 2h`, and `B^T q` likewise from the gradients in theta.

    The displacement `|h v|` of each lane balances the rounding of the gradients against the truncation error. It starts
    at `eps^(1/3) * max(1, |z| min(1, sqrt(100/n)))`, which suits third derivatives of size one, and is shortened where
    the gradient is far from linear over it. This is tested in the cross term and in each product with H, which begins
    with the displacement of the last one, until a shorter displacement is no help. A product is then accurate to about
    `eps^(2/3)` as far as the rounding of the gradients allows: 4e-11 in double and 2e-5 in single precision. Gradients
    in theta are taken at a theta that is at least as precise as z.
    """

    estimated = True

    def __init__(self, problem: ProblemAtTheta, z: Tensor) -> None:
        if not problem.symmetric:
            raise StructureError(
                "products='finite-difference' give the Jacobian of a fixed-point problem instead of its transpose, "
                "which the hypergradient needs. Use products='reverse'."
            )
        super().__init__(problem, z)
        self._at = (finer(problem, z) if self._live else None) or Finer(problem, self.optimality.slope)
        # A residual contains a few products, each with an error of about eps^(2/3). Below this level, iterates of a
        # linear solver differ only by that error.
        self.noise = 10 * torch.finfo(z.dtype).eps ** (2 / 3)
        self._length: Tensor | None = None
        self._tested = self._kinked = False  # every lane has a displacement; shorter ones are no help

    def times_hessian(self, direction: Tensor) -> Tensor:
        # The displacement is a length in z, so the direction must have length one. H is linear: scale the product.
        unit, size = split(direction)
        if self._tested:
            found, sides = self._along_z(unit, self._start)
            # The gradient may bend along this direction although it is linear along the earlier ones.
            if self._kinked or all_true(~sides.steep):
                return size * found
        found, length = adapted(lambda h: self._along_z(unit, h, look=True), self._start, self._rounding)
        self._kinked = self._tested and all_true(length == self._start)
        # A zero vector, such as the projection of an active coordinate, tests nothing.
        self._tested = self._tested or all_true(size > 0)
        self._length = torch.where(size > 0, length, self._start)
        return size * found

    def along(self, q: Tensor) -> list[Tensor | None]:
        parts, _ = self._adapted_along(q)
        return like(self._leaves, parts)

    def error(self, q: Tensor) -> float:
        """Return `|D(2h) - D(h)| / |D(h)|` of `H q` or of `B^T q`, whichever is larger.

        This is about the relative error where rounding dominates, and three times it where truncation does, since the
        truncation error grows with h^2.
        """
        unit, size = split(q)
        image, h = adapted(lambda h: self._along_z(unit, h, look=True), self._start, self._rounding)
        gap = _gap([size * image], [size * self._along_z(unit, 2 * h)[0]])
        if not self._live:
            return gap
        parts, h = self._adapted_along(q)
        near, far = ([part for part in found if part is not None] for found in (parts, self._along(q, 2 * h)[0]))
        return max(gap, _gap(near, far))

    @property
    def _start(self) -> Tensor:
        return first(self._z) if self._length is None else self._length

    def _adapted_along(self, q: Tensor) -> tuple[list[Tensor | None], Tensor]:
        if not self._live:
            return [None] * len(self._leaves), self._start
        return adapted(lambda h: self._along(q, h), self._start, self._rounding)

    def _along_z(self, unit: Tensor, h: Tensor, *, look: bool = False) -> tuple[Tensor, Sides]:
        # Under autocast the two gradients would differ by little more than its rounding.
        with suspended.on():
            return along(self._problem.detach().gradient, self._z, self.optimality.slope, unit, h, look=look)

    def _along(self, q: Tensor, h: Tensor) -> tuple[list[Tensor | None], Sides]:
        unit, size = split(q)
        problem, here = self._at
        inputs = [problem.leaves[i] for i in self._live]
        with torch.enable_grad(), suspended.on():
            shift = (h * unit).requires_grad_()  # its gradients are those on the two sides, which `Sides` compares
            values = two_values(problem, self._z, shift)
        # Each lane has its own h, so each value is weighted by size / 2h before the sum over lanes.
        weight = size / (2 * h)
        slopes, parts = [], []
        for side, value in zip((1, -1), values, strict=True):
            slope, *found = (
                torch.autograd.grad(
                    value, [shift, *inputs], weight.squeeze(-1), retain_graph=self._derived, allow_unused=True
                )
                if value.requires_grad
                else [None] * (1 + len(inputs))
            )
            # The derivative of a value in `shift` is the gradient in z on that side, times the sign of the side and the
            # weight. `Sides` compares the gradients themselves.
            slopes.append(torch.zeros_like(q) if slope is None else side * slope / torch.where(size > 0, weight, 1.0))
            parts.append(found)
        pairs = zip(*parts, strict=True)
        spread = self._spread([None if a is None or b is None else a - b for a, b in pairs])
        nearby = None
        if not self._tested:  # no product with H has chosen the displacement yet
            with torch.enable_grad(), suspended.on():
                near = (0.25 * h * unit).requires_grad_()
                (nearby,) = torch.autograd.grad(value_beside(problem.detach(), self._z, near).sum(), near)
        return spread, Sides.of(slopes[0], slopes[1], slope_between(problem, here), nearby)

    @property
    def _derived(self) -> bool:
        """Whether theta is computed from the leaves, as complex leaves are.

        All evaluations share the graph of this computation, so it is retained. Any other graph is freed after use,
        which compiled modules require.
        """
        return any(
            isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree.leaves(self._at.problem.theta)
        )

    def _rounding(self) -> Tensor:
        with suspended.on():
            return rounding(self._problem.detach().gradient, self._z, self.optimality.slope)


def _gap(near: Sequence[Tensor], far: Sequence[Tensor]) -> float:
    gap, size = (
        math.hypot(*(float(length(part.reshape(-1))) for part in parts))
        for parts in ([a - b for a, b in zip(near, far, strict=True)], near)
    )
    return gap / size if size else 0.0
