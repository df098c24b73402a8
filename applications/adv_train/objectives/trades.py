"""The training objective of TRADES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from adv_train.objectives.base import OBJECTIVES, Objective, Reduction, reduced
from adv_train.objectives.kl import KL
from adv_train.values import NotNegative


@OBJECTIVES.register("trades")
@dataclass(frozen=True)
class TRADESLoss(Objective):
    """Cross-entropy of the clean image plus beta KL(clean prediction, perturbed prediction) (Zhang et al., ICML 2019).

    Attributes:
        beta: Weight of the divergence; 6 as published.
    """

    looks_at_clean: ClassVar[bool] = True
    beta: NotNegative = 6.0

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        assert clean is not None
        return reduced(F.cross_entropy(clean, y, reduction="none") + self.beta * KL()(logits, y, clean), reduction)
