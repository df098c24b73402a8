"""MultiGrad: a sign step on pixels whose gradient has one sign at several random points (Golgooni et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import blo
from adv_train.methods.base import METHODS, Start
from adv_train.methods.fast_at import FastAT
from adv_train.methods.known import along
from adv_train.methods.losses import Losses
from adv_train.threat import Threat
from adv_train.values import Count


@METHODS.register("multigrad")
@dataclass(frozen=True, kw_only=True)
class MultiGrad(FastAT):
    """One sign step from zero; pixels whose gradient changes its sign between random points of the ball stay at zero.

    It costs `2 points + 3` forward passes. Source: "ZeroGrad: Mitigating and explaining catastrophic overfitting in
    FGSM adversarial training", arXiv:2103.15476, and its published code.

    Attributes:
        points: number of random points at which the gradient is computed.
        step: step size, in the units of eps; 2 eps by default, which the ball cuts to eps.
    """

    norms = ("linf",)

    start: Start = "zero"
    points: Count = 3

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        votes = torch.zeros_like(losses.x)
        for _ in range(self.points):
            votes += losses.slope(params, threat.sample(losses.x, losses.generator)).sign()
        return blo.value_and_hypergrad(
            losses.train,
            along(attack, torch.where(votes.abs() < self.points, 0.0, votes)),
            params,
            start,
            solver=blo.OneStep(self.length(threat), direction="sign"),
            gradient=blo.Zero(),
            on_failure="ignore",
        )

    def length(self, threat: Threat) -> float:
        return 2 * threat.eps if self.step is None else self.step
