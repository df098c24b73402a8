"""The training objective of MART."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adv_train.objectives.base import OBJECTIVES, Objective, Reduction, reduced
from adv_train.objectives.kl import KL
from adv_train.values import NotNegative

_ABOVE_ONE = 1.0001  # as in the published code: the logarithm stays finite where a wrong class has probability 1


@OBJECTIVES.register("mart")
@dataclass(frozen=True)
class MARTLoss(Objective):
    """Boosted cross-entropy plus a divergence with more weight on images whose clean version is misclassified.

    With p the prediction for the clean image and q that for the perturbed image, the loss is
    `-log q_y - log(1 - max_{k != y} q_k) + weight KL(p, q) (1 - p_y)` (Wang et al., ICLR 2020).

    Attributes:
        weight: Weight of the divergence; published: 5 for a ResNet, 6 for a WideResNet.
    """

    looks_at_clean: ClassVar[bool] = True
    weight: NotNegative = 5.0

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        assert clean is not None
        runner_up = logits.softmax(1).scatter(1, y[:, None], 0.0).amax(1)
        boosted = F.cross_entropy(logits, y, reduction="none") - torch.log(_ABOVE_ONE - runner_up)
        missed = 1 - clean.softmax(1).gather(1, y[:, None]).squeeze(1)
        return reduced(boosted + self.weight * missed * KL()(logits, y, clean), reduction)
