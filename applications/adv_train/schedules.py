"""Learning rate, momentum and radius as pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

CYCLE_DEPTH: Final = 0.1
#: One-cycle starts at the peak over 25 and ends at that start over 10,000, as torch's OneCycleLR does by default.
START_DIVISOR: Final = 25.0
END_DIVISOR: Final = 1e4
#: Share of the steps after which a schedule with a peak is at its peak, where nothing else is said.
PEAKS: Final = {"triangular": 0.5, "one-cycle": 0.3}
#: Factor at each milestone of multistep, where nothing else is said.
DECAY: Final = 0.1


def learning_rate(
    step: int,
    steps: int,
    *,
    peak: float,
    schedule: str,
    peak_at: float | None = None,
    milestones: Sequence[int] = (),
    decay: float | None = None,
) -> float:
    """Give the learning rate of one step.

    ``triangular`` rises from 0 to ``peak`` and falls back, both in a straight line (Wong, Rice and Kolter, 2020, "Fast
    is better than free"); its first step has learning rate 0, as in the published code. ``one-cycle`` rises from
    ``peak / START_DIVISOR`` and falls to that over `END_DIVISOR`, both along half a cosine (Smith and Topin, 2018,
    "Super-convergence", as in torch's OneCycleLR). ``multistep`` is multiplied by ``decay`` at each milestone.
    ``cosine`` falls from ``peak`` (Loshchilov and Hutter, 2017, without restarts). ``constant`` stays.

    Args:
        step: Index of the step in the whole run, from 0.
        steps: Number of steps in the whole run.
        peak: Largest learning rate.
        schedule: The name of one of these.
        peak_at: Share of the steps after which triangular and one-cycle peak, in [0, 1); by default that of `PEAKS`.
        milestones: Steps, for multistep.
        decay: Factor, for multistep; by default `DECAY`.

    Raises:
        ValueError: When there is no such schedule.
    """
    if schedule == "triangular":
        return peak * _triangle(step, steps, peak_at)
    if schedule == "one-cycle":
        start = peak / START_DIVISOR
        low = start if step < _top(steps, peak_at) else start / END_DIVISOR
        return low + (peak - low) * _wave(step, steps, peak_at)
    if schedule == "multistep":
        return peak * (DECAY if decay is None else decay) ** sum(step >= milestone for milestone in milestones)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * step / steps))
    if schedule == "constant":
        return peak
    raise ValueError(f"`schedule` must be triangular, one-cycle, multistep, cosine or constant, but is {schedule!r}.")


def cycled_momentum(
    step: int, steps: int, *, momentum: float, schedule: str = "triangular", peak_at: float | None = None
) -> float:
    """Give the momentum of one step: `CYCLE_DEPTH` below ``momentum`` where the learning rate peaks.

    It moves along one-cycle's half cosines, and for every other schedule along the triangle.
    """
    height = _wave if schedule == "one-cycle" else _triangle
    return momentum - CYCLE_DEPTH * height(step, steps, peak_at)


def warmed_up(eps: float, epoch: int, epochs: int) -> float:
    """Give the radius of an epoch: the mean over the epoch of a straight line from 0, which reaches ``eps`` in time.

    One number for an epoch, because a step that is captured once and replayed cannot see it move.

    Args:
        eps: Radius after the warm-up.
        epoch: Number of the epoch, from 0.
        epochs: How long the line rises.
    """
    return eps if epoch >= epochs else eps * (epoch + 0.5) / epochs


def _triangle(step: int, steps: int, peak_at: float | None) -> float:
    top, at = PEAKS["triangular"] if peak_at is None else peak_at, step / steps
    return 1 - abs(at - top) / (top if at < top else 1 - top)


def _wave(step: int, steps: int, peak_at: float | None) -> float:
    top = _top(steps, peak_at)
    done = step / top if step < top else 1 + (step - top) / (steps - 1 - top)
    return (1 - math.cos(math.pi * done)) / 2


def _top(steps: int, peak_at: float | None) -> float:
    # The last step, not the one after it, has the lowest rate: OneCycleLR counts from its first step to its last.
    return steps * (PEAKS["one-cycle"] if peak_at is None else peak_at) - 1
