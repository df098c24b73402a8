"""Second derivatives of a lower problem at one point, from one retained graph of its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import gradient, pullback
from blo._problem import Bound
from blo.gradients._base import Optimality


class Point:
    """The lower problem at `(theta, z)` with graphs that serve any number of products.

    With H = d2g/dz2, B = d2g/dz dtheta and N the motion of the active face (all zero unless the set moves).
    """

    def __init__(self, problem: Bound, z: Tensor, leaves: Sequence[Tensor]) -> None:
        self._leaves = leaves
        with torch.enable_grad():
            self._z = z.detach().requires_grad_()
            # What moves is measured from a set at rest; its tangent space, too, must not drag a graph of theta along.
            rest = tree.detach(problem.constraint)
            self._motion = problem.motion(rest, z)
            # The solution moves with the active face, so the gradient taken there sees B + H N.
            moved = self._z + self._motion if problem.moving else self._z
            self._gradient = gradient(problem.value, moved, create_graph=True)
        slope = self._gradient.detach()
        self.optimality = Optimality(z, slope, rest, rest.tangent(z, slope))

    def hessian(self, direction: Tensor) -> Tensor:
        """Return H times a direction, shape `(*lanes, n)`."""
        (product,) = pullback([self._gradient], [self._z], [direction])
        return torch.zeros_like(direction) if product is None else product

    def cross(self, q: Tensor, v: Tensor) -> list[Tensor | None]:
        """Return `-B^T q + N^T (v - H q)` for each leaf of theta, None where theta has no influence.

        This is the last product: it frees the graph on its way, so that memory is reused while it is made.
        """
        inputs = [leaf for leaf in self._leaves if leaf.requires_grad]
        found = iter(pullback([self._gradient, self._motion], inputs, [-q, v], last=True))
        return [next(found) if leaf.requires_grad else None for leaf in self._leaves]
