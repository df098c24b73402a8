"""A quadratic upper bound of the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adv_train.objectives.base import OBJECTIVES, Objective, Reduction, reduced


@OBJECTIVES.register("qub")
@dataclass(frozen=True)
class QUB(Objective):
    """The quadratic in the logits that touches the cross-entropy at the clean image and lies above it everywhere.

    Let f be the clean logits, p their probabilities, y the one-hot label, and d the change of the logits. The bound is
    `CE(f) + <p - y, d> + |d|^2 / 4`, because no eigenvalue of the Hessian `diag(p) - p p^T` of the cross-entropy
    exceeds 1/2; two classes of probability 1/2 reach it (You and Lee, ICML 2025).
    """

    looks_at_clean: ClassVar[bool] = True

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        assert clean is not None
        change = logits - clean
        slope = clean.softmax(1).scatter_add(1, y[:, None], -torch.ones_like(clean[:, :1]))
        bound = F.cross_entropy(clean, y, reduction="none") + (slope * change).sum(1) + change.square().sum(1) / 4
        return reduced(bound, reduction)
