"""MA-SOBA: SOBA with a moving average of the direction of theta."""

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
class MASOBA(Algorithm):
    """SOBA with a moving average: theta moves along the average `h`, in which the newest direction has weight `mixing`.

    Args:
        lower_step: step size of z and q; None with a `lower_optimizer`.
        upper_step: step size of theta.
        mixing: weight of the newest direction in the average, at most 1. The theory takes it proportional to
            `upper_step`. If all three fall like `Power(c, -1/2)`, the mean expected squared norm of the hypergradient
            over T steps is O(1 / sqrt(T)), for f once and g twice smooth (SOBA's theory needs one more derivative).
        lower_optimizer: creates a torch optimiser for z, and another for q, instead of plain gradient steps: `lambda
            parameters: torch.optim.Adam(parameters, lr=0.1)`. The analysis assumes that g is strongly convex in z,
            plain steps on z and q, and fixed ratios of `upper_step`, `lower_step` and `mixing`. With another optimiser
            the rate is not proved.
        lower_scheduler: creates the learning-rate schedule from the optimiser; it advances once per step.

    Raises:
        ValueError: if `lower_step` and `lower_optimizer` are both given or both missing, `lower_scheduler` is given
            without `lower_optimizer`, a step size or `mixing` is not positive, or `mixing` exceeds 1.
        StructureError: if `lower_optimizer` or `lower_scheduler` is not a function.

    Source: Chen, Xiao and Balasubramanian, "Optimal algorithms for stochastic bilevel optimization under relaxed
    smoothness conditions", 2023, Algorithm 1.
    """

    lower_step: Schedule | None = None
    upper_step: Schedule
    mixing: Schedule
    lower_optimizer: OptimizerFactory | None = None
    lower_scheduler: SchedulerFactory | None = None

    def __post_init__(self) -> None:
        require_descent(self)
        require(self.upper_step, "upper_step")
        require(self.mixing, "mixing")
        if not callable(self.mixing):
            _share(self.mixing)

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        return {"q": torch.zeros_like(z), "h": torch.zeros_like(theta)}

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        q, h = memory["q"], memory["h"]
        toward = oracle.directions(theta, z, q)
        lower, gamma = Descent(self, k, memory), at(self.upper_step, k, "upper_step")
        mixed = torch.lerp(h, toward.theta, _share(at(self.mixing, k, "mixing")))
        # As in the paper, theta moves along the average of the earlier steps. The newest direction takes effect in the
        # next step.
        z, q = lower.move("z", z, toward.z), lower.move("q", q, toward.q)
        return theta - gamma * h, z, {"q": q, "h": mixed, **lower.memory()}


def _share(value: float) -> float:
    if value > 1:
        raise ValueError(f"`mixing` is a weight in an average and must be at most 1, but is {value}.")
    return value
