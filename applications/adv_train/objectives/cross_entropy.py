"""Cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from adv_train.errors import UserError
from adv_train.objectives.base import OBJECTIVES, Objective, Reduction


@OBJECTIVES.register("cross-entropy")
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Minus the logarithm of the true class's probability.

    Attributes:
        smoothing: Share of the label's weight that is spread over all classes.
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 1:
            raise UserError(f"`smoothing` must be a number between 0 and 1, but is {self.smoothing}.")

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        return F.cross_entropy(logits, y, reduction=reduction, label_smoothing=self.smoothing)
