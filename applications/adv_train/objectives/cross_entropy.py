"""Cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from adv_train.objectives.base import OBJECTIVES, Objective, Reduction
from adv_train.values import Range


@OBJECTIVES.register("cross-entropy")
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Minus the logarithm of the true class's probability.

    Attributes:
        smoothing: Share of the label's weight that is spread over all classes.
    """

    smoothing: Annotated[float, Range(0, 1)] = 0.0

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        return F.cross_entropy(logits, y, reduction=reduction, label_smoothing=self.smoothing)
