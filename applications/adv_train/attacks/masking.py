"""Whether gradients led PGD anywhere: where they did not, a sample that withstood it is not robust for that.

Rounding, sampling or saturation inside a model hides its gradient (Athalye et al., ICML 2018). PGD stands still then,
and every correctly classified sample withstands it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adv_train.ranks import ALONE, Ranks

_SEEING = 0.01
"""Least share of the pixels with a gradient other than zero for a sample to count as attacked."""

_MANY = 0.1
"""The attack warns when this share of the correctly classified samples is masked; in smooth models none is."""

_ENOUGH = 20
"""Samples below which no progress may be chance."""

LEAST_EPS = 1e-5
"""Budget as a share of the range of images below which rounding decides whether a margin fell."""


class Progress:
    """Counts, over one restart, the samples that gave no gradient and those that it did not move towards an error.

    Both come from what the attack computes anyway; the second is measured by logits, so that gradients which are
    there but lead nowhere are found as well. Progress is a margin that fell or a cross-entropy that rose: in a barely
    trained model an attack on the latter may raise the label's logit as long as others rise more.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._blind: list[Tensor] = []
        self._stuck: list[Tensor] = []
        self._before = torch.empty(0), torch.empty(0)

    def begin(self, logits: Tensor, y: Tensor, gradient: Tensor) -> None:
        """Look at the start of a batch: its logits ``(batch, classes)`` and its gradient ``(batch, C, H, W)``."""
        self.samples += len(y)
        self._blind.append((gradient != 0).flatten(1).float().mean(1) <= _SEEING)
        self._before = _margin(logits, y), _loss(logits, y)

    def end(self, logits: Tensor, y: Tensor) -> None:
        """Look at the end of the same batch."""
        # In half precision what moved a little may read the same.
        slack = 0.01 if logits.dtype in (torch.float16, torch.bfloat16) else 0.0
        margin, loss = self._before
        fell = _margin(logits, y) < margin + slack * margin.abs()
        rose = _loss(logits, y) > loss * (1 - slack)
        self._stuck.append(~(fell | rose) & ~self._blind[-1])

    def warn(self, ranks: Ranks = ALONE) -> None:
        """Say so when there were many, on all ranks together.

        Warns:
            RuntimeWarning: Names the share of the samples, and what to do about it.
        """
        found = [int(torch.cat(flags).sum()) if flags else 0 for flags in (self._blind, self._stuck)]
        samples, *counts = map(sum, zip(*ranks.every([self.samples, *found]), strict=True))
        if samples == 0:
            return
        blind, stuck = (count / samples for count in counts)
        if blind >= _MANY:
            what = f"the model gives PGD (nearly) no gradient on {blind:.0%} of its {samples}"
        elif stuck >= _MANY and samples >= _ENOUGH:
            what = f"PGD neither lowered the margin nor raised the loss of {stuck:.0%} of the {samples}"
        else:
            return
        warnings.warn(
            f"Masked gradients: {what} correctly classified images, so that they withstand it says nothing. Look for "
            "rounding, sampling, detach() or saturation inside the model; judge it by an attack without gradients "
            "(`square`), or with the rounding passed straight through.",
            RuntimeWarning,
            stacklevel=4,
        )


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Give the logit of the label minus the best other, ``(batch,)``, in single precision or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = logits.scatter(1, y[:, None], -torch.inf)
    margin: Tensor = logits.gather(1, y[:, None]).squeeze(1) - others.amax(1)
    return margin


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    """Give the cross-entropy, ``(batch,)``, in single precision or wider."""
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), y, reduction="none")
