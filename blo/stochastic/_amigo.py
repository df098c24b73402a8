"""AmIGO: warm-started inner loops for z and for q."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from blo._settings import require_count
from blo.stochastic._base import Algorithm, Memory
from blo.stochastic._oracle import Oracle
from blo.stochastic._schedule import Schedule, at, require


@final
@dataclass(frozen=True, kw_only=True)
class AmIGO(Algorithm):
    """Amortised implicit gradient optimisation: a few steps on z, a few on q, one on theta.

    Both z and q start from where the last step left them, so that a constant number of inner steps suffices. A step
    takes `inner_steps + adjoint_steps + 1` lower batches and one upper batch.

    Args:
        lower_step: step size of z and q; below 2 over the largest curvature of g.
        upper_step: step size of theta.
        inner_steps: steps on z.
        adjoint_steps: steps on q, down `q^T H q / 2 - q^T grad_z f`.

    Without noise it converges linearly for strongly convex F and like O(1 / T) otherwise; with noise its complexity is
    that of stochastic gradient descent on F.

    Raises:
        ValueError: if a step size is not positive, or a count is below 1.

    Source: Arbel and Mairal, ICLR 2022, Algorithms 1 to 3 (their z is -q), with plain gradient steps.
    """

    lower_step: Schedule
    upper_step: Schedule
    inner_steps: int = 10
    adjoint_steps: int = 10

    def __post_init__(self) -> None:
        require(self.lower_step, "lower_step")
        require(self.upper_step, "upper_step")
        require_count(self.inner_steps, "inner_steps")
        require_count(self.adjoint_steps, "adjoint_steps")

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        return {"q": torch.zeros_like(z)}

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        rho, gamma = at(self.lower_step, k, "lower_step"), at(self.upper_step, k, "upper_step")
        z = oracle.descend(theta, z, rho, self.inner_steps)
        direct, v = oracle.upper().gradients(theta, z)
        q: Tensor = memory["q"]
        for _ in range(self.adjoint_steps):
            q = q - rho * (oracle.lower().curvature(theta, z, q) - v)
        cross = oracle.lower().products(theta, z, q)[2]
        return theta - gamma * (direct - cross), z, {"q": q}
