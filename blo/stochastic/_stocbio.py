"""stocBiO: inner descent, then a Neumann series on new batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from blo._scheduled import OptimizerFactory, SchedulerFactory
from blo._settings import require_count
from blo.stochastic._base import Algorithm, Memory
from blo.stochastic._descent import Descent, require_descent
from blo.stochastic._oracle import Oracle
from blo.stochastic._schedule import Schedule, at, require


@final
@dataclass(frozen=True, kw_only=True)
class StocBiO(Algorithm):
    """Stochastic bilevel optimiser: steps on z, then a Neumann series for q, then a step on theta.

    z keeps its value from the last step, and q is computed again in each step: it is `lower_step` times the sum of
    `products + 1` terms, each of which is the previous one times `I - lower_step H` on a new batch. A step takes
    `inner_steps + products + 1` lower batches and one upper batch.

    Args:
        lower_step: step size of z and of the series; below 2 over the largest curvature of g.
        upper_step: step size of theta; constant.
        inner_steps: number of steps on z.
        products: number of Hessian-vector products in the series. Truncating it leaves a bias of relative size
            `(1 - lower_step * mu) ** (products + 1)`, where mu is the strong convexity of g.
        lower_optimizer: creates a torch optimiser for z, `lambda parameters: torch.optim.Adam(parameters, lr=0.1)`,
            instead of plain gradient steps; the series still uses `lower_step`. The analysis assumes that g is strongly
            convex in z, plain steps on z of constant size, and a constant `upper_step` that is small relative to the
            smoothness of F. With another optimiser the rate is not proved.
        lower_scheduler: creates the learning-rate schedule from the optimiser; it advances once per step.

    The mean expected squared norm of the hypergradient over T steps is O(1 / T), down to that bias and to a floor
    proportional to one over the batch sizes.

    Raises:
        ValueError: if a step size is not positive, `lower_scheduler` is given without `lower_optimizer`, `inner_steps`
            is below 1, or `products` is negative.
        StructureError: if `lower_optimizer` or `lower_scheduler` is not a function.

    Source: Ji, Yang and Liang, ICML 2021, Algorithm 2 and Theorem 3.
    """

    lower_step: Schedule
    upper_step: Schedule
    inner_steps: int = 10
    products: int = 10
    lower_optimizer: OptimizerFactory | None = None
    lower_scheduler: SchedulerFactory | None = None

    def __post_init__(self) -> None:
        require_descent(self, series=True)
        require(self.upper_step, "upper_step")
        require_count(self.inner_steps, "inner_steps")
        require_count(self.products, "products", least=0)

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        return {}

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        eta, beta = at(self.lower_step, k, "lower_step"), at(self.upper_step, k, "upper_step")
        lower = Descent(self, k, memory)
        z = oracle.descend(theta, z, lower, self.inner_steps)
        direct, term = oracle.upper().gradients(theta, z)
        total = term
        # Independent batches for the factors make the expectation of the product the product of the expectations.
        for _ in range(self.products):
            term = term - eta * oracle.lower().curvature(theta, z, term)
            total = total + term
        # The sum of (I - eta H)^j over all j is H^-1 / eta.
        cross = oracle.lower().products(theta, z, eta * total)[2]
        return theta - beta * (direct - cross), z, lower.memory()
