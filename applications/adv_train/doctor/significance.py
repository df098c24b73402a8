"""Whether a difference is more than chance: exact tests at one level, so that small samples raise no alarm."""

from __future__ import annotations

from typing import Final

from torch import Tensor

LEVEL: Final = 1e-3
"""Probability of an alarm by chance, of each test; a diagnosis makes some ten of them."""


def exceeds(successes: int, n: int, share: float) -> bool:
    """Tell whether more of n samples succeed than chance allows when each does with this probability at most.

    The one-sided exact binomial test. No sample is no evidence.
    """
    from scipy.stats import binomtest  # Not at the top: `import adv_train` works without it.

    return n > 0 and float(binomtest(successes, n, share, alternative="greater").pvalue) < LEVEL


def more(first: Tensor, second: Tensor) -> bool:
    """Tell whether the first holds more often than the second, both of shape ``(n,)`` over the same samples.

    The one-sided exact test of McNemar: of the samples on which they differ, half favour either by chance.
    """
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    return exceeds(wins, wins + losses, 0.5)
