"""PGD-AT: several sign steps, no implicit gradient (Madry et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import blo
from adv_train.methods.base import METHODS, Adversarial
from adv_train.methods.losses import Losses
from adv_train.threat import NORMS, Threat
from adv_train.values import Count, Positive


@METHODS.register("pgd-at")
@dataclass(frozen=True, kw_only=True)
class PGDAT(Adversarial):
    """The min-max problem with an attack of several sign steps.

    In l2 and l1 the steps follow the gradient itself; their size is the Euclidean length.

    Attributes:
        steps: number of steps, 2 by default.
        step: step size, in the units of eps. For up to 4 steps the default is eps/2, for more it is 2/255 in linf and
            2.5 eps / steps in l2 and l1. The defaults in linf are those published for 2 and for 10 steps.
    """

    norms = NORMS
    mixes = True
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
            solver=blo.ProjectedGradient(
                self.length(threat), max_steps=self.steps, tol=None, direction=threat.direction
            ),
            gradient=blo.Zero(),
            on_failure="ignore",
        )

    def length(self, threat: Threat) -> float:
        """Return the length of a step in pixels."""
        if self.step is not None:
            return self.step
        if self.steps <= 4:
            return threat.eps / 2
        return 2 / 255 if threat.norm == "linf" else 2.5 * threat.eps / self.steps
