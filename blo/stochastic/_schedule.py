"""Schedules of step sizes: constants, or functions of the number of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

#: A positive number, or a function from the number of the step (0, 1, 2, ...) to a positive number.
Schedule: TypeAlias = float | Callable[[int], float]


@dataclass(frozen=True)
class Power:
    """The schedule `scale * (1 + k / delay) ** exponent`, where k is the number of the step.

    Args:
        scale: the value at the first step; positive.
        exponent: -1/2 for a step size that falls like one over the square root of k, 1/7 for a growing penalty.
        delay: the number of steps during which the value stays about the same; positive.

    Raises:
        ValueError: if the scale or the delay is not positive.
    """

    scale: float
    exponent: float
    delay: float = 1.0

    def __post_init__(self) -> None:
        require(self.scale, "scale")
        require(self.delay, "delay")

    def __call__(self, k: int) -> float:
        """Return the value at step `k`."""
        return self.scale * float((1 + k / self.delay) ** self.exponent)


def require(schedule: Schedule, name: str) -> None:
    """Check that a constant is a positive finite number.

    Raises:
        ValueError: if it is not; the message calls it `name`.
    """
    # Negated, since every comparison with NaN is false.
    if not callable(schedule) and not 0 < _number(schedule, name) < math.inf:
        raise ValueError(f"`{name}` must be positive and finite, but is {schedule}.")


def at(schedule: Schedule, k: int, name: str) -> float:
    """Return the value of a schedule at step `k`.

    Raises:
        ValueError: if it is not a positive finite number; the message calls it `name`.
    """
    if not callable(schedule):
        return schedule
    value = _number(schedule(k), name)
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be positive and finite at every step, but at step {k} is {value}.")
    return value


def _number(value: float, name: str) -> float:
    """Return a value as a float.

    Raises:
        ValueError: if it is not a number; the message calls it `name`.
    """
    # `float` would also convert a string such as "0.1", which is more likely a mistake in a configuration.
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError):
        pass
    found = type(value).__name__
    raise ValueError(f"`{name}` must be a number, or a function of the step that returns one, but got {found}.")
