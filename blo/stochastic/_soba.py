"""SOBA: gradient steps on theta, z and q at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from blo.stochastic._base import Algorithm, Memory
from blo.stochastic._oracle import Oracle
from blo.stochastic._schedule import Schedule, at, require


@final
@dataclass(frozen=True, kw_only=True)
class SOBA(Algorithm):
    """Stochastic bilevel algorithm: one step on theta, z and q together, from one batch of each objective.

    With q the running solution of `H q = grad_z f`, it moves along `grad_theta f - B^T q`, `grad_z g` and
    `H q - grad_z f`, which are sums over examples and so have unbiased estimates on batches.

    Args:
        lower_step: step size of z and q.
        upper_step: step size of theta. With both falling like `Power(c, -1/2)` the smallest expected squared norm of
            the hypergradient over T steps is O(log T / sqrt(T)).

    Raises:
        ValueError: if a step size is not positive.

    Source: Dagréou, Ablin, Vaiter and Moreau, NeurIPS 2022, Sec. 2 and 3 (their v is -q).
    """

    lower_step: Schedule
    upper_step: Schedule

    def __post_init__(self) -> None:
        require(self.lower_step, "lower_step")
        require(self.upper_step, "upper_step")

    def _start(self, theta: Tensor, z: Tensor) -> Memory:
        return {"q": torch.zeros_like(z)}

    def _advance(
        self, k: int, theta: Tensor, z: Tensor, memory: Memory, oracle: Oracle
    ) -> tuple[Tensor, Tensor, Memory]:
        q = memory["q"]
        toward = oracle.directions(theta, z, q)
        rho, gamma = at(self.lower_step, k, "lower_step"), at(self.upper_step, k, "upper_step")
        return theta - gamma * toward.theta, z - rho * toward.z, {"q": q - rho * toward.q}
