"""ELLE: Fast-AT with a penalty if the loss is not linear between random points (Abad Rocamora et al., ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import blo
from adv_train import ranks
from adv_train.methods.base import METHODS, Start
from adv_train.methods.fast_at import FastAT
from adv_train.methods.losses import Losses
from adv_train.threat import Threat
from adv_train.values import NotNegative

# Coefficients of the published code, by the largest eps for which each is used, in units of 1/255; and for larger eps.
PUBLISHED, ABOVE = {8: 1_000.0, 20: 5_000.0}, 10_000.0


@METHODS.register("elle")
@dataclass(frozen=True, kw_only=True)
class ELLE(FastAT):
    """One sign step from zero; the upper loss also penalises how far the attack's objective is from linear.

    With L the attack's objective, a and b uniform within eps of the image and s uniform in [0, 1], the penalty is the
    mean of `(L((1 - s) a + s b) - (1 - s) L(a) - s L(b))^2`. The three points of all images go through the model as one
    batch, as in the published code. A step costs 14 forward passes.

    Attributes:
        step: step size, in the units of eps; eps by default.
        coefficient: weight of the penalty; by default 1000 up to eps = 8/255, 5000 up to 20/255 and 10000 above, as
            published for CIFAR-10.
    """

    norms = ("linf",)
    trains_on_attack = True

    start: Start = "zero"
    coefficient: NotNegative | None = None

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        x, coefficient = losses.x, self._coefficient(threat)
        ends = ranks.uniform(x, -threat.eps, threat.eps, generator=losses.generator, times=2)
        share = ranks.uniform(x[:, 0, 0, 0], generator=losses.generator)
        first, second = ends.chunk(2)
        points = torch.cat((ends, torch.lerp(first, second, share.view(-1, 1, 1, 1))))
        thrice = losses.repeated(3)

        def upper(theta: dict[str, Tensor], delta: Tensor) -> Tensor:
            loss = losses.train(theta, delta)
            at_first, at_second, between = (-thrice.attack(theta, points)).chunk(3)
            return loss + coefficient * (between - torch.lerp(at_first, at_second, share)).square().mean()

        losses.upper = upper
        return super().solve(attack, losses, params, start, threat)

    def length(self, threat: Threat) -> float:
        return threat.eps if self.step is None else self.step

    def _coefficient(self, threat: Threat) -> float:
        if self.coefficient is not None:
            return self.coefficient
        for levels, coefficient in PUBLISHED.items():
            if threat.eps <= levels / 255 + 1e-9:
                return coefficient
        return ABOVE
