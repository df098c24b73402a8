"""SOBA: simultaneous gradient steps on theta, z and q."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from blo._scheduled import OptimizerFactory, SchedulerFactory
from blo.stochastic._base import Algorithm, Memory
from blo.stochastic._descent import Descent, require_descent
from blo.stochastic._oracle import Oracle
from blo.stochastic._schedule import Schedule, at, require


@final
@dataclass(frozen=True, kw_only=True)
class SOBA(Algorithm):
    """Stochastic bilevel algorithm: one step on theta, z and q together, from one batch of each objective.

    q is a running approximation of the solution of `H q = grad_z f`. The directions of theta, z and q are
    `grad_theta f - B^T q`, `grad_z g` and `H q - grad_z f`. They are sums over examples, so batches give unbiased
    estimates.

    Args:
        lower_step: step size of z and q; None with a `lower_optimizer`.
        upper_step: step size of theta. If both fall like `Power(c, -1/2)`, the smallest expected squared norm of the
            hypergradient over T steps is O(log T / sqrt(T)).
        lower_optimizer: creates a torch optimiser for z, and another for q, instead of plain gradient steps: `lambda
            parameters: torch.optim.Adam(parameters, lr=0.1)`. The analysis assumes that g is strongly convex in z,
            plain steps on z and q, and a fixed, small ratio of `upper_step` to `lower_step`. With another optimiser the
            rate is not proved.
        lower_scheduler: creates the learning-rate schedule from the optimiser; it advances once per step.

    Raises:
        ValueError: if `lower_step` and `lower_optimizer` are both given or both missing, `lower_scheduler` is given
            without `lower_optimizer`, or a step size is not positive.
        StructureError: if `lower_optimizer` or `lower_scheduler` is not a function.

    Source: Dagréou, Ablin, Vaiter and Moreau, NeurIPS 2022, Sec. 2 and 3 (their v is -q).
    """

    lower_step: Schedule | None = None
    upper_step: Schedule
    lower_optimizer: OptimizerFactory | None = None
    lower_scheduler: SchedulerFactory | None = None

    def __post_init__(self) -> None:
        require_descent(self)
        require(self.upper_step, "upper_step")

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        return {"q": torch.zeros_like(z)}

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        q = memory["q"]
        toward = oracle.directions(theta, z, q)
        lower, gamma = Descent(self, k, memory), at(self.upper_step, k, "upper_step")
        # All three move from the same point: theta does not use the new z and q.
        z, q = lower.move("z", z, toward.z), lower.move("q", q, toward.q)
        return theta - gamma * toward.theta, z, {"q": q, **lower.memory()}
