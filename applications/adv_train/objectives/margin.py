"""The margin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adv_train.objectives.base import OBJECTIVES, Objective, Reduction, reduced


@OBJECTIVES.register("margin")
@dataclass(frozen=True)
class Margin(Objective):
    """The largest other logit minus the true one (Carlini and Wagner, S&P 2017): positive if misclassified."""

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        true = logits.gather(1, y[:, None]).squeeze(1)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        return reduced(others - true, reduction)
