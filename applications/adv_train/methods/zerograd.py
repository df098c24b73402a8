"""ZeroGrad: a sign step that leaves out the pixels with the smallest gradients (Golgooni et al., 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

import blo
from adv_train.methods.base import METHODS
from adv_train.methods.fast_at import FastAT
from adv_train.methods.known import along
from adv_train.methods.losses import Losses
from adv_train.threat import Threat
from adv_train.values import Range


@METHODS.register("zerograd")
@dataclass(frozen=True, kw_only=True)
class ZeroGrad(FastAT):
    """One sign step from a random start; the pixels of an image with the smallest gradients stay at their start.

    Source: "ZeroGrad: Mitigating and explaining catastrophic overfitting in FGSM adversarial training",
    arXiv:2103.15476, and its published code.

    Attributes:
        quantile: share of an image's pixels that stay at their start; published: 0.35 for CIFAR-10, 0.45 for CIFAR-100.
        step: step size, in the units of eps; 2 eps by default.
    """

    norms = ("linf",)

    quantile: Annotated[float, Range(0, 1)] = 0.35

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        slope = losses.slope(params, start)
        size = slope.flatten(1).abs()
        # A gradient lies below the interpolated quantile exactly if it lies below the next larger order statistic.
        rank = 1 + math.ceil(self.quantile * (size.shape[1] - 1))
        least = size.kthvalue(rank, dim=1, keepdim=True).values
        kept = torch.where(size < least, 0.0, slope.flatten(1)).view_as(slope)
        return blo.value_and_hypergrad(
            losses.train,
            along(attack, kept),
            params,
            start,
            solver=blo.OneStep(self.length(threat), direction="sign"),
            gradient=blo.Zero(),
            on_failure="ignore",
        )

    def length(self, threat: Threat) -> float:
        return 2 * threat.eps if self.step is None else self.step
