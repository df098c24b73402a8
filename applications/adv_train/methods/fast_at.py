"""Fast-AT: one sign step, no implicit gradient (Wong et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import blo
from adv_train.methods.base import METHODS, Adversarial
from adv_train.methods.losses import Losses
from adv_train.threat import NORMS, Threat
from adv_train.values import Positive


@METHODS.register("fast-at")
@dataclass(frozen=True, kw_only=True)
class FastAT(Adversarial):
    """The bilevel problem whose attack is one sign step from a random start, without implicit gradient.

    In l2 and l1 the step follows the gradient itself; its size is the Euclidean length.

    Attributes:
        step: step size, in the units of eps; 1.25 eps by default.
    """

    norms: ClassVar[Collection[str]] = NORMS
    mixes: ClassVar[bool] = True
    step: Positive | None = None

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        return blo.value_and_hypergrad(
            losses.upper or losses.train,
            attack,
            params,
            start,
            solver=blo.OneStep(self.length(threat), direction=threat.direction),
            gradient=blo.Zero(),
            on_failure="ignore",
        )

    def length(self, threat: Threat) -> float:
        """Return the length of the step in pixels."""
        return 1.25 * threat.eps if self.step is None else self.step
