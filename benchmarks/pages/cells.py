"""The format of figures in the pages."""

from __future__ import annotations

from adv_train.comparison.statistics import Difference, Spread

SIGNIFICANT = 0.05


def accuracy(spread: Spread) -> str:
    """Write a mean with its deviation, in percent."""
    if spread.mean is None:
        return "–"
    return f"{100 * spread.mean:.1f}" + ("" if spread.std is None else f" ± {100 * spread.std:.1f}")


def points(difference: Difference) -> str:
    """Write a difference in percentage points with its interval and p-value."""
    if difference.mean is None:
        return "–"
    told = f"{100 * difference.mean:+.1f}"
    if difference.low is None or difference.high is None or difference.p is None:
        return told
    p = "p < 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}"
    return f"{told} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}], {p}"


def verdict(difference: Difference) -> str:
    """Say whether a difference is significant, and its direction."""
    if difference.mean is None or difference.p is None:
        return "too few seeds" if difference.n < 2 else "equal on every seed"
    if difference.p >= SIGNIFICANT:
        return "not significant"
    return "better" if difference.mean > 0 else "worse"
