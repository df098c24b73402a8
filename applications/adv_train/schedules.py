"""Learning rate and momentum as pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

CYCLE_DEPTH = 0.1


def learning_rate(step: int, steps: int, *, peak: float, schedule: str) -> float:
    """Give the learning rate of one step.

    ``triangular`` rises from 0 to ``peak`` at half time and falls back (Wong, Rice and Kolter, 2020, "Fast is better
    than free"); its first step has learning rate 0, as in the published code. ``cosine`` falls from ``peak``
    (Loshchilov and Hutter, 2017, without restarts). ``constant`` stays.

    Args:
        step: Index of the step in the whole run, from 0.
        steps: Number of steps in the whole run.
        peak: Largest learning rate.
        schedule: ``"triangular"``, ``"cosine"`` or ``"constant"``.

    Raises:
        ValueError: When there is no such schedule.
    """
    if schedule == "triangular":
        return peak * _height(step, steps)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * step / steps))
    if schedule == "constant":
        return peak
    raise ValueError(f"`schedule` must be triangular, cosine or constant, but is {schedule!r}.")


def cycled_momentum(step: int, steps: int, *, momentum: float) -> float:
    """Give the momentum of one step: `CYCLE_DEPTH` below ``momentum`` at half time, where the triangle peaks."""
    return momentum - CYCLE_DEPTH * _height(step, steps)


def _height(step: int, steps: int) -> float:
    return 1 - abs(2 * step / steps - 1)
