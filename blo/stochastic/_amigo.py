"""AmIGO: inner loops for z and q with warm starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from blo._scheduled import OptimizerFactory, SchedulerFactory
from blo._settings import require_count
from blo.stochastic._base import Algorithm, Memory
from blo.stochastic._descent import Descent, require_descent
from blo.stochastic._oracle import Oracle
from blo.stochastic._schedule import Schedule, at, require


@final
@dataclass(frozen=True, kw_only=True)
class AmIGO(Algorithm):
    """Amortised implicit gradient optimisation: a few steps on z, a few on q, one on theta.

    z and q keep their values from the last step as warm starts, so a constant number of inner steps suffices. A step
    takes `inner_steps + adjoint_steps + 1` lower batches and one upper batch.

    Args:
        lower_step: step size of z and q; below 2 over the largest curvature of g. None with a `lower_optimizer`.
        upper_step: step size of theta.
        inner_steps: number of steps on z.
        adjoint_steps: number of steps on q, which minimise `q^T H q / 2 - q^T grad_z f`.
        lower_optimizer: creates a torch optimiser for z, and another for q, instead of plain gradient steps: `lambda
            parameters: torch.optim.Adam(parameters, lr=0.1)`. The analysis assumes that g is strongly convex in z,
            plain steps with a step size below the inverse of its curvature, enough of them for its condition number,
            and an `upper_step` that is small relative to the smoothness of F. With another optimiser the rates are not
            proved.
        lower_scheduler: creates the learning-rate schedule from the optimiser; it advances once per step.

    Without noise the method converges linearly for strongly convex F and like O(1 / T) otherwise. With noise its
    complexity is that of stochastic gradient descent on F.

    Raises:
        ValueError: if `lower_step` and `lower_optimizer` are both given or both missing, `lower_scheduler` is given
            without `lower_optimizer`, a step size is not positive, or a count is below 1.
        StructureError: if `lower_optimizer` or `lower_scheduler` is not a function.

    Source: Arbel and Mairal, ICLR 2022, Algorithms 1 to 3 (their z is -q), with plain gradient steps.
    """

    lower_step: Schedule | None = None
    upper_step: Schedule
    inner_steps: int = 10
    adjoint_steps: int = 10
    lower_optimizer: OptimizerFactory | None = None
    lower_scheduler: SchedulerFactory | None = None

    def __post_init__(self) -> None:
        require_descent(self)
        require(self.upper_step, "upper_step")
        require_count(self.inner_steps, "inner_steps")
        require_count(self.adjoint_steps, "adjoint_steps")

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        return {"q": torch.zeros_like(z)}

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        lower, gamma = Descent(self, k, memory), at(self.upper_step, k, "upper_step")
        # As in the paper, z moves first: v, H and B belong to the new z.
        z = oracle.descend(theta, z, lower, self.inner_steps)
        direct, v = oracle.upper().gradients(theta, z)
        q: Tensor = memory["q"]
        # v stays fixed while H is sampled again in each step: only H needs many batches.
        for _ in range(self.adjoint_steps):
            q = lower.move("q", q, oracle.lower().curvature(theta, z, q) - v)
        cross = oracle.lower().products(theta, z, q)[2]
        return theta - gamma * (direct - cross), z, {"q": q, **lower.memory()}
