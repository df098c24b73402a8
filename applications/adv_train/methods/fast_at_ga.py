"""Fast-AT-GA: Fast-AT with gradient alignment (Andriushchenko & Flammarion, NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import blo
from adv_train.methods.base import METHODS, Adversarial, Start
from adv_train.methods.known import along
from adv_train.methods.losses import Losses
from adv_train.ranks import Share
from adv_train.threat import NORMS, Threat
from adv_train.values import NotNegative, Positive

_TINY = 1e-8
# Coefficients of the published code by eps in units of 1/255.
PUBLISHED = {2: 0.036, 4: 0.063, 6: 0.112, 8: 0.2, 10: 0.356, 12: 0.632, 14: 1.124, 16: 2.0}


@METHODS.register("fast-at-ga")
@dataclass(frozen=True, kw_only=True)
class FastATGA(Adversarial):
    """One sign step from zero; the upper loss also penalises a change of the input gradient's direction in the ball.

    In l2 and l1 the step follows the gradient itself; its size is the Euclidean length.

    The alignment term is `1 - cos(gradient at 0, gradient at a uniform point)`, averaged over the samples where
    neither gradient vanishes. The gradient at 0 is the one that the attack uses; training treats it as a constant.

    Attributes:
        step: step size, in the units of eps; 1.25 eps by default.
        coefficient: weight of the alignment term; by default that published for the nearest eps in linf, and 0.2 in l2
            and l1, for which none is published.
    """

    norms = NORMS
    mixes = True
    trains_on_attack = True
    start: Start = "zero"
    step: Positive | None = None
    coefficient: NotNegative | None = None

    @property
    def differentiates_once(self) -> bool:
        return self.coefficient == 0

    @property
    def differentiates_gradients(self) -> bool:
        return not self.differentiates_once

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        slope = losses.slope(params, start)
        coefficient = self._coefficient(threat)
        elsewhere = threat.noise(losses.x, generator=losses.generator)

        def upper(theta: dict[str, Tensor], delta: Tensor) -> Tensor:
            loss = losses.train(theta, delta)
            if coefficient == 0:
                return loss
            return loss + coefficient * _misalignment(
                slope, losses.slope(theta, elsewhere, create_graph=True), losses.share
            )

        losses.upper = upper
        return blo.value_and_hypergrad(
            upper,
            along(attack, slope),
            params,
            start,
            solver=blo.OneStep(1.25 * threat.eps if self.step is None else self.step, direction=threat.direction),
            gradient=blo.Zero(),
            on_failure="ignore",
        )

    def _coefficient(self, threat: Threat) -> float:
        if self.coefficient is not None:
            return self.coefficient
        if threat.norm != "linf":
            return 0.2
        return PUBLISHED[min(PUBLISHED, key=lambda k: abs(k - 255 * threat.eps))]


def _misalignment(fixed: Tensor, moving: Tensor, share: Share) -> Tensor:
    """Return the mean of 1 - cos over the samples where neither gradient vanishes, shape `()`."""
    a, b = fixed.flatten(1), moving.flatten(1)
    sizes = [slopes.detach().norm(dim=1, keepdim=True) for slopes in (a, b)]
    counted = ((sizes[0] > 0) & (sizes[1] > 0)).squeeze(1)
    # `cosine_similarity` takes norms below 1e-8 for 1e-8, so confident samples would count as misaligned.
    a, b = (
        slopes / torch.where((size > 0) & (size < _TINY), size, 1.0) for slopes, size in zip((a, b), sizes, strict=True)
    )
    cosine = F.cosine_similarity(a, b, dim=1, eps=_TINY)
    mean: Tensor = share.sum(((1 - cosine) * counted).sum()) / share.sum(counted.sum()).clamp(min=1)
    return mean
