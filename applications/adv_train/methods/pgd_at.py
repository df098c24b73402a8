"""PGD-AT: several sign steps, no implicit gradient (Madry et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import blo
from adv_train.errors import UserError
from adv_train.methods.base import METHODS, Adversarial, positive
from adv_train.methods.losses import Losses
from adv_train.threat import Threat


@METHODS.register("pgd-at")
@dataclass(frozen=True, kw_only=True)
class PGDAT(Adversarial):
    """The min-max problem with an attack of several sign steps.

    Attributes:
        steps: number of steps, 2 by default.
        step: step size in pixels; by default eps/2 up to 4 steps and 2/255 above, as published for 2 and for 10.
    """

    steps: int = 2
    step: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"`steps` must be at least 1, but is {self.steps}.")
        positive("step", self.step)

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        published = threat.eps / 2 if self.steps <= 4 else 2 / 255
        step = published if self.step is None else self.step
        return blo.value_and_hypergrad(
            losses.train,
            attack,
            params,
            start,
            solver=blo.ProjectedGradient(step, max_steps=self.steps, tol=None, direction="sign"),
            gradient=blo.Zero(),
            on_failure="ignore",
        )
