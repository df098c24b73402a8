"""Exact tests at one significance level, so that small samples raise no false alarm."""

from __future__ import annotations

from typing import Final

from torch import Tensor

LEVEL: Final = 1e-3
"""Probability of a false alarm of each test; a diagnosis makes about ten tests."""


def exceeds(successes: int, n: int, share: float) -> bool:
    """Return whether the number of successes rejects the hypothesis that their probability is at most `share`.

    The test is the one-sided exact binomial test. Without samples it does not reject.
    """
    from scipy.stats import binomtest  # Not at the top: `import adv_train` works without it.

    return n > 0 and float(binomtest(successes, n, share, alternative="greater").pvalue) < LEVEL


def more(first: Tensor, second: Tensor) -> bool:
    """Return whether `first` holds significantly more often than `second`; both are ``(n,)`` over the same samples.

    The test is McNemar's, one-sided and exact: by chance, each holds on half of the samples on which they differ.
    """
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    return exceeds(wins, wins + losses, 0.5)
