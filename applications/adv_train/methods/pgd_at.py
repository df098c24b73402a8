"""PGD-AT: several sign steps, no implicit gradient (Madry et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import blo
from adv_train.methods.base import METHODS, Adversarial
from adv_train.methods.losses import Losses
from adv_train.threat import Threat
from adv_train.values import Count, Positive


@METHODS.register("pgd-at")
@dataclass(frozen=True, kw_only=True)
class PGDAT(Adversarial):
    """The min-max problem with an attack of several sign steps.

    Attributes:
        steps: number of steps, 2 by default.
        step: step size in pixels; by default eps/2 up to 4 steps and 2/255 above, as published for 2 and for 10.
    """

    steps: Count = 2
    step: Positive | None = None

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        return blo.value_and_hypergrad(
            losses.train,
            attack,
            params,
            start,
            solver=blo.ProjectedGradient(self.length(threat), max_steps=self.steps, tol=None, direction="sign"),
            gradient=blo.Zero(),
            on_failure="ignore",
        )

    def length(self, threat: Threat) -> float:
        """Return the length of a step in pixels."""
        if self.step is not None:
            return self.step
        return threat.eps / 2 if self.steps <= 4 else 2 / 255
