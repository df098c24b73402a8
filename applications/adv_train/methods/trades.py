"""TRADES: an attack on the divergence from the clean prediction (Zhang et al., ICML 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from adv_train.methods.base import METHODS, Mode, Start
from adv_train.methods.pgd_at import PGDAT
from adv_train.objectives import Objective
from adv_train.objectives.kl import KL
from adv_train.objectives.trades import TRADESLoss
from adv_train.threat import Threat
from adv_train.values import Count


@METHODS.register("trades")
@dataclass(frozen=True, kw_only=True)
class TRADES(PGDAT):
    """PGD on the divergence from the clean prediction; training adds this divergence to the clean cross-entropy.

    The weight of the divergence is an option of the objective: `--train-loss "trades(beta=1)"`. The attack starts near
    the image, since the divergence has no gradient at the image itself. As in the published code the attack sees the
    model in eval mode, so it needs clean logits of its own. A step costs `2 steps + 7` forward passes.

    Attributes:
        steps: number of steps; 10 as published.
        step: step size, in the units of eps; eps/4 by default.
    """

    start: Start = "gaussian"
    attack_mode: Mode = "eval"
    attack_loss: Objective = KL()  # noqa: RUF009  # frozen, so sharing the default is safe
    train_loss: Objective = TRADESLoss()  # noqa: RUF009
    steps: Count = 10

    def length(self, threat: Threat) -> float:
        return threat.eps / 4 if self.step is None else self.step
