"""The divergence from the clean prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from adv_train.objectives.base import OBJECTIVES, Objective, Reduction, reduced


@OBJECTIVES.register("kl")
@dataclass(frozen=True)
class KL(Objective):
    """KL(clean prediction, perturbed prediction), as in TRADES (Zhang et al., ICML 2019); labels are not used."""

    looks_at_clean: ClassVar[bool] = True

    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        assert clean is not None
        # The argument order is reversed: `kl_div(input, target)` is KL(target, input).
        pairs = F.kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True)
        return reduced(pairs.sum(1), reduction)
