"""N-FGSM: one sign step from wide noise, not projected onto the ball (de Jorge et al., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    """One sign step from noise wider than the budget; the sum is clipped to the range of images, but not to the ball.

    In l1 the sum is projected onto the ball of radius `width * eps + step`, because the l1 norm of a step along the
    gradient can be much larger than its Euclidean length.

    Attributes:
        width: radius of the ball in which the noise is uniform, in units of eps; 2 as published.
        step: step size, in the units of eps; eps by default.
    """

    width: NotNegative = 2.0

    @property
    def noise_width(self) -> float:
        """Radius of the noise in units of eps."""
        return self.width if self.start == "uniform" else 0.0

    def allowed(self, x: Tensor, threat: Threat) -> blo.sets.Set:
        if threat.norm == "l1":
            return replace(threat, eps=self.noise_width * threat.eps + self.length(threat)).set(x)
        return blo.Box(threat.low - x, threat.high - x, validate=False)

    def draw(self, losses: Losses, threat: Threat) -> Tensor:
        if self.start != "uniform":
            return super().draw(losses, threat)
        noise = threat.noise(losses.x, self.noise_width, losses.generator)
        return self.allowed(losses.x, threat).project(noise)

    def length(self, threat: Threat) -> float:
        return threat.eps if self.step is None else self.step
