"""BOME: descent on f under the condition that the gap of the lower problem decreases."""

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
class BOME(Algorithm):
    """Bilevel optimisation made easy: theta and z move together along `grad f + weight * grad gap`.

    The gap is `g(theta, z) - g(theta, z_T)`, where `inner_steps` steps lead from z to z_T, which is then constant. The
    weight is the smallest non-negative one for which the gap decreases at a rate of at least `barrier * |grad gap|^2`.
    A step takes one batch of each objective and uses it for all evaluations. The theory is for full batches: the weight
    is a ratio, so it is biased with minibatches.

    Args:
        lower_step: step size of the inner descent to z_T; None with a `lower_optimizer`.
        upper_step: step size of theta and z. If it is constant, the distance of z from the minimiser stays of the order
            of `upper_step`. If it is proportional to 1 / sqrt(T), the smallest measure of stationarity over T steps is
            O(T^(-1/4)).
        inner_steps: number of steps of the inner descent.
        barrier: above 0 and at most 1.
        lower_optimizer: creates a torch optimiser for the inner descent, instead of plain gradient steps: `lambda
            parameters: torch.optim.Adam(parameters, lr=0.1)`. It keeps its averages from step to step. z itself moves
            with theta by steps of size `upper_step`, as the weight requires. The analysis assumes the
            Polyak-Łojasiewicz inequality of g in z, and an inner descent by plain steps with a step size of at most the
            inverse of the curvature of g, which decreases g. With another optimiser the rate is not proved.
        lower_scheduler: creates the learning-rate schedule from the optimiser; it advances once per step.

    Raises:
        ValueError: if `lower_step` and `lower_optimizer` are both given or both missing, `lower_scheduler` is given
            without `lower_optimizer`, a step size is not positive, `inner_steps` is below 1 or `barrier` is out of
            range.
        StructureError: if `lower_optimizer` or `lower_scheduler` is not a function.

    Source: Liu, Ye, Wright, Stone and Liu, NeurIPS 2022, Algorithm 1 and Sec. 4.
    """

    lower_step: Schedule | None = None
    upper_step: Schedule
    inner_steps: int = 10
    barrier: float = 0.5
    lower_optimizer: OptimizerFactory | None = None
    lower_scheduler: SchedulerFactory | None = None

    def __post_init__(self) -> None:
        require_descent(self)
        require(self.upper_step, "upper_step")
        require_count(self.inner_steps, "inner_steps")
        if not 0 < self.barrier <= 1:
            raise ValueError(f"`barrier` must be above 0 and at most 1, but is {self.barrier}.")

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        return {}

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        descent, xi = Descent(self, k, memory), at(self.upper_step, k, "upper_step")
        # The gap is a difference of two values of one function, so all evaluations of g are on one batch.
        lower, upper = oracle.lower(), oracle.upper()
        best = z
        for _ in range(self.inner_steps):
            best = descent.move("z", best, lower.slope(theta, best))
        gap_theta, gap_z = lower.gradients(theta, z)
        # No term for the motion of z_T: where z_T minimises g, grad_z g is zero (Danskin).
        gap_theta = gap_theta - lower.gradients(theta, best)[0]
        f_theta, f_z = upper.gradients(theta, z)

        # <grad gap, grad f + weight grad gap> >= barrier |grad gap|^2 holds from weight = barrier - along / size on.
        size = gap_theta.square().sum() + gap_z.square().sum()
        along = (f_theta * gap_theta).sum() + (f_z * gap_z).sum()
        # If the gradient of the gap is zero, z minimises g already: the ratio is undefined and no weight is needed.
        weight = torch.where(size > 0, self.barrier - along / size, 0.0).clamp(min=0)
        return theta - xi * (f_theta + weight * gap_theta), z - xi * (f_z + weight * gap_z), descent.memory()
