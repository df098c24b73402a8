"""SOBA: gradient steps on theta, z and q at once."""

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

    With q the running solution of `H q = grad_z f`, it moves along `grad_theta f - B^T q`, `grad_z g` and
    `H q - grad_z f`, which are sums over examples and so have unbiased estimates on batches.

    Args:
        lower_step: step size of z and q; None with a `lower_optimizer`.
        upper_step: step size of theta. With both falling like `Power(c, -1/2)` the smallest expected squared norm of
            the hypergradient over T steps is O(log T / sqrt(T)).
        lower_optimizer: makes a torch optimiser of z, and another of q, in place of plain steps: `lambda parameters:
            torch.optim.Adam(parameters, lr=0.1)`. The analysis assumes g strongly convex in z, plain steps on z and q,
            and `upper_step` in a fixed, small ratio to `lower_step`; with another optimiser the rate is not proved.
        lower_scheduler: makes the schedule of its learning rate from the optimiser; stepped once a step.

    Raises:
        ValueError: if `lower_step` and `lower_optimizer` are both given or both missing, or a step size is not
            positive.

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
        z, q = lower.move("z", z, toward.z), lower.move("q", q, toward.q)
        return theta - gamma * toward.theta, z, {"q": q, **lower.memory()}
