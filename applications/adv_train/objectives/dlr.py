"""The difference of logits ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adv_train.objectives.base import OBJECTIVES, Objective, Reduction, reduced

_TINY = 1e-12  # as in the published code: the ratio stays finite if the three largest logits are equal


@OBJECTIVES.register("dlr")
@dataclass(frozen=True)
class DLR(Objective):
    """The margin divided by the largest minus the third-largest logit (Croce and Hein, ICML 2020)."""

    least_classes: ClassVar[int] = 3

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        self.check_classes(logits.shape[1])
        largest = logits.topk(3, dim=1).values
        true = logits.gather(1, y[:, None]).squeeze(1)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        return reduced((others - true) / (largest[:, 0] - largest[:, 2] + _TINY), reduction)
