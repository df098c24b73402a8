"""N-FGSM: one sign step from wide noise, nothing of which is cut off (de Jorge et al., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import blo
from adv_train.methods.base import METHODS
from adv_train.methods.fast_at import FastAT
from adv_train.methods.losses import Losses
from adv_train.threat import Threat
from adv_train.values import NotNegative


@METHODS.register("n-fgsm")
@dataclass(frozen=True, kw_only=True)
class NFGSM(FastAT):
    """One sign step from noise wider than the budget; images stay images, but neither is cut back to the ball.

    Attributes:
        width: The noise is uniform in the ball of radius width * eps; 2 as published.
        step: step size in the norm; eps by default.
    """

    width: NotNegative = 2.0

    def allowed(self, x: Tensor, threat: Threat) -> blo.sets.Set:
        return blo.Box(threat.low - x, threat.high - x, validate=False)

    def draw(self, losses: Losses, threat: Threat) -> Tensor:
        if self.start != "uniform":
            return super().draw(losses, threat)
        noise = threat.noise(losses.x, self.width, losses.generator)
        return self.allowed(losses.x, threat).project(noise)

    def length(self, threat: Threat) -> float:
        return threat.eps if self.step is None else self.step
