"""Detection of masked gradients: a sample that withstands PGD is not robust if PGD got no usable gradient.

Rounding, sampling or saturation inside a model hides its gradient (Athalye et al., ICML 2018). PGD then does not move,
and every correctly classified sample withstands it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adv_train.ranks import ALONE, Ranks

_SEEING = 0.01
"""A sample counts as one without gradient if at most this share of its pixels has a nonzero gradient."""

_MANY = 0.1
"""Share of the correctly classified samples at which the attack warns; in smooth models no sample is masked."""

_ENOUGH = 20
"""With fewer samples than this, missing progress may be chance."""

LEAST_EPS = 1e-5
"""Smallest budget, as a share of the range of images; below it, rounding decides whether a margin fell."""


class Progress:
    """Counts, in the first round of an attack, the samples without gradient and the samples without progress.

    Both follow from gradients and logits that the attack computes anyway. Progress is measured by the logits, which
    also finds gradients that do not vanish but point in useless directions. A sample made progress if its margin fell
    or its cross-entropy rose. Either is enough: in a barely trained model, an attack on the cross-entropy may raise the
    label's logit as long as others rise more.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._blind: list[Tensor] = []
        self._stuck: list[Tensor] = []
        self._before = torch.empty(0), torch.empty(0)

    def begin(self, logits: Tensor, y: Tensor, gradient: Tensor) -> None:
        """Record the start of a batch: its logits ``(batch, classes)`` and its gradient ``(batch, C, H, W)``."""
        self.samples += len(y)
        self._blind.append((gradient != 0).flatten(1).float().mean(1) <= _SEEING)
        self._before = _margin(logits, y), _loss(logits, y)

    def end(self, logits: Tensor, y: Tensor) -> None:
        """Record the end of the same batch."""
        # In half precision, a small change of the margin or the loss can round to none.
        slack = 0.01 if logits.dtype in (torch.float16, torch.bfloat16) else 0.0
        margin, loss = self._before
        fell = _margin(logits, y) < margin + slack * margin.abs()
        rose = _loss(logits, y) > loss * (1 - slack)
        self._stuck.append(~(fell | rose) & ~self._blind[-1])

    def warn(self, ranks: Ranks = ALONE) -> None:
        """Warn if many samples, of all ranks together, had no gradient or no progress.

        Warns:
            RuntimeWarning: With the share of these samples, and what to do.
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
            f"Masked gradients: {what} correctly classified images, so their surviving PGD is no evidence of "
            "robustness. Look for rounding, sampling, detach() or saturation inside the model. Evaluate it with an "
            "attack without gradients (`square`), or give the rounding a straight-through gradient.",
            RuntimeWarning,
            stacklevel=4,
        )


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the label's logit minus the largest other logit, ``(batch,)``, in single precision or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = logits.scatter(1, y[:, None], -torch.inf)
    margin: Tensor = logits.gather(1, y[:, None]).squeeze(1) - others.amax(1)
    return margin


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy, ``(batch,)``, in single precision or wider."""
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), y, reduction="none")
