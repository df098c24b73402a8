"""Learning rate, momentum and eps as pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

CYCLE_DEPTH: Final = 0.1
#: One-cycle starts at peak / 25 and ends at that start / 10,000, as torch's OneCycleLR does by default.
START_DIVISOR: Final = 25.0
END_DIVISOR: Final = 1e4
#: Default share of the steps after which a schedule with a peak reaches its peak.
PEAKS: Final = {"triangular": 0.5, "one-cycle": 0.3}
#: Default factor at each milestone of multistep.
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
    """Return the learning rate of one step.

    ``triangular`` rises linearly from 0 to ``peak`` and falls linearly back to 0 (Wong, Rice and Kolter, 2020, "Fast is
    better than free"); its first step has learning rate 0, as in the published code. ``one-cycle`` rises from ``peak /
    START_DIVISOR`` to ``peak`` and falls to ``peak / START_DIVISOR / END_DIVISOR``, both along half a cosine (Smith and
    Topin, 2018, "Super-convergence", as in torch's OneCycleLR). ``multistep`` starts at ``peak`` and is multiplied by
    ``decay`` at each milestone. ``cosine`` falls from ``peak`` to 0 along half a cosine (Loshchilov and Hutter, 2017,
    without restarts). ``constant`` is ``peak`` in every step.

    Args:
        step: Index of the step in the whole run, from 0.
        steps: Number of steps in the whole run.
        peak: Largest learning rate.
        schedule: Name of the schedule.
        peak_at: Share of the steps after which triangular and one-cycle peak, in [0, 1); by default that of `PEAKS`.
        milestones: Steps at which multistep falls.
        decay: Factor at each milestone of multistep; by default `DECAY`.

    Raises:
        ValueError: If there is no such schedule.
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
    """Return the momentum of one step, which falls to ``momentum - CYCLE_DEPTH`` where the learning rate peaks.

    It follows the half cosines of one-cycle, and for every other schedule the triangle.
    """
    height = _wave if schedule == "one-cycle" else _triangle
    return momentum - CYCLE_DEPTH * height(step, steps, peak_at)


def warmed_up(eps: float, epoch: int, epochs: int) -> float:
    """Return the eps of an epoch: the mean over this epoch of a line from 0, which reaches ``eps`` after ``epochs``.

    It is constant within an epoch, because a captured step cannot read a Python number that changes.

    Args:
        eps: The eps after the warm-up.
        epoch: Index of the epoch, from 0.
        epochs: Number of epochs of the warm-up.
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
    # As in OneCycleLR, the last step (steps - 1) has the lowest rate and not the step after it, so all is one earlier.
    return steps * (PEAKS["one-cycle"] if peak_at is None else peak_at) - 1
