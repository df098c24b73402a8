"""MART: training that gives misclassified images more weight (Wang et al., ICLR 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from adv_train.methods.base import METHODS
from adv_train.methods.trades import TRADES
from adv_train.objectives import Objective
from adv_train.objectives.cross_entropy import CrossEntropy
from adv_train.objectives.mart import MARTLoss


@METHODS.register("mart")
@dataclass(frozen=True, kw_only=True)
class MART(TRADES):
    """PGD on the cross-entropy, as in TRADES; training minimises boosted cross-entropy plus a weighted divergence.

    The weight is an option of the objective: `--train-loss "mart(weight=6)"`. A step costs `2 steps + 6` forward
    passes.
    """

    attack_loss: Objective = CrossEntropy()  # noqa: RUF009  # frozen, so sharing the default is safe
    train_loss: Objective = MARTLoss()  # noqa: RUF009
