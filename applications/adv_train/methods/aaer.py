"""AAER: a penalty on images whose loss falls along the attack's step (Lin, Yu and Liu, NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

import blo
from adv_train.methods.base import METHODS
from adv_train.methods.fast_at import FastAT
from adv_train.methods.losses import Losses
from adv_train.methods.n_fgsm import NFGSM
from adv_train.ranks import Share
from adv_train.threat import Threat
from adv_train.values import NotNegative

Table: TypeAlias = Mapping[int, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Regularised(FastAT):
    """Single-step training with abnormal adversarial examples regularisation.

    An image is abnormal if its cross-entropy falls along the attack's step. Let d be the mean fall of the abnormal
    images, and V(.) the mean of `|f(x + delta) - f(x + start)|^2` over a group of images. The penalty is

        penalty * (abnormal / batch) * (fall * d + variation * max(0, V(abnormal) - V(normal))),

    and zero if one of the groups is empty. As in the published code, training differentiates only V(abnormal), and in
    it only the logits at x + delta. So `fall` changes the reported loss but not the gradient, unless `follow_fall` is
    set. The logits at the start are those of the attack, so the penalty needs no forward pass of its own.

    Attributes:
        penalty: weight of the penalty.
        fall: weight of the mean fall d; by default the published value for the nearest eps on CIFAR-10.
        variation: weight of the excess variation, `max(0, V(abnormal) - V(normal))`; by default the published value
            for the nearest eps on CIFAR-10.
        follow_fall: differentiate the mean fall too, at x + delta.
    """

    norms = ("linf",)
    mixes = False
    #: `fall` and `variation` of the published runs on CIFAR-10 by eps in units of 1/255.
    published: ClassVar[Table]

    penalty: NotNegative = 1.0
    fall: NotNegative | None = None
    variation: NotNegative | None = None
    follow_fall: bool = False

    def solve(
        self, attack: blo.LowerProblem, losses: Losses, params: dict[str, Tensor], start: Tensor, threat: Threat
    ) -> blo.Hypergradient:
        nearest = min(self.published, key=lambda level: abs(level - 255 * threat.eps))
        fall, variation = (
            default if chosen is None else chosen
            for chosen, default in zip((self.fall, self.variation), self.published[nearest], strict=True)
        )

        def upper(theta: dict[str, Tensor], delta: Tensor) -> Tensor:
            clean = losses.forward(theta, None) if self.train_loss.looks_at_clean else None
            logits = losses.forward(theta, delta)
            losses.logits = logits.detach()
            return losses.train_objective(logits, clean) + self.penalty * self._abnormality(
                losses.attacked, logits, losses.y, fall, variation, losses.share
            )

        losses.upper = upper
        return super().solve(attack, losses, params, start, threat)

    def _abnormality(
        self, before: Tensor, after: Tensor, y: Tensor, fall: float, variation: float, share: Share
    ) -> Tensor:
        """Return the penalty without the factor `penalty`, shape `()`, from logits of shape `(batch, classes)`."""
        falls = F.cross_entropy(before, y, reduction="none") - F.cross_entropy(after, y, reduction="none")
        abnormal = falls.detach() > 0
        moved = (after - before).square().sum(1)
        excess = (_mean(moved, abnormal, share) - _mean(moved.detach(), ~abnormal, share)).clamp(min=0)
        fallen = _mean(falls if self.follow_fall else falls.detach(), abnormal, share)
        part, count = share.mean(abnormal.to(after.dtype).mean()), share.sum(abnormal.sum())
        both = (count > 0) & (count < share.whole)
        return both * part * (fall * fallen + variation * excess)


def _mean(values: Tensor, chosen: Tensor, share: Share) -> Tensor:
    """Return the mean of the chosen values, shape `()`; zero if none is chosen."""
    return share.sum(torch.where(chosen, values, 0.0).sum()) / share.sum(chosen.sum()).clamp(min=1)


@METHODS.register("aaer")
@dataclass(frozen=True, kw_only=True)
class AAER(Regularised, NFGSM):
    """N-FGSM with a penalty on images whose loss falls along the attack's step."""

    published: ClassVar[Table] = {8: (1.5, 0.15), 12: (5.0, 0.55), 16: (8.5, 1.5), 32: (2.75, 0.75)}


@METHODS.register("aaer-rs")
@dataclass(frozen=True, kw_only=True)
class AAERFastAT(Regularised):
    """Fast-AT with a penalty on images whose loss falls along the attack's step."""

    published: ClassVar[Table] = {8: (2.5, 1.5), 12: (5.0, 2.75), 16: (7.0, 3.25), 32: (5.75, 1.5)}
