"""Products by forward mode over a reverse-mode gradient: no graph is kept between products."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import jvp
from blo._problem_at_theta import ProblemAtTheta
from blo.errors import StructureError
from blo.gradients._first_order_point import FirstOrderPoint


class ForwardPoint(FirstOrderPoint):
    """`H v` and `B^T q` as the derivatives of the gradients in z and in theta along v and q."""

    _jacobian = "forward"

    def __init__(self, problem: ProblemAtTheta, z: Tensor) -> None:
        if not problem.symmetric:
            raise StructureError(
                "products='forward' give the Jacobian of a fixed-point problem instead of its transpose, which the "
                "hypergradient needs. Use products='reverse'."
            )
        super().__init__(problem, z)
        self.noise = problem.eps or 0.0
        self._at_rest = problem.detach()

    def times_hessian(self, direction: Tensor) -> Tensor:
        product: Tensor = jvp(self._at_rest.gradient, self._z, direction)
        return product

    def along(self, q: Tensor) -> list[Tensor | None]:
        places = self._live
        constants = [leaf.detach() for leaf in self._leaves]
        with torch.enable_grad():
            enters = self._problem.value(self._z).requires_grad
        if not enters:  # forward mode returns zeros in this case, but None is what says that theta does not enter
            return [None] * len(self._leaves)

        def slopes(z: Tensor) -> tuple[Tensor, ...]:
            def value(live: tuple[Tensor, ...]) -> Tensor:
                full = list(constants)
                for place, tensor in zip(places, live, strict=True):
                    full[place] = tensor
                # All lanes share theta. The derivative of the sum along each lane's q is the sum of their B^T q.
                return self._problem.rebind(full).value(z).sum()

            found: tuple[Tensor, ...] = torch.func.grad(value)(tuple(constants[place] for place in places))
            return found

        return self._spread(jvp(slopes, self._z, q))
