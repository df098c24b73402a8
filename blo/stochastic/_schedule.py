"""Step sizes: constants, or functions of the step's number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

#: A positive number, or a function from the number of the step (0, 1, 2, ...) to one.
Schedule: TypeAlias = float | Callable[[int], float]


@dataclass(frozen=True)
class Power:
    """The schedule `scale * (1 + k / delay) ** exponent` of the step's number k.

    Args:
        scale: the value at the first step; positive.
        exponent: -1/2 for a step size that falls like one over the square root, 1/7 for a penalty that grows.
        delay: steps for which the value stays about the same; positive.

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
    """Refuse a constant that is not a positive finite number, naming `name`.

    Raises:
        ValueError: if it is not.
    """
    if not callable(schedule) and not 0 < _number(schedule, name) < math.inf:
        raise ValueError(f"`{name}` must be positive and finite, but is {schedule}.")


def at(schedule: Schedule, k: int, name: str) -> float:
    """Return the value of a schedule at step `k`.

    Raises:
        ValueError: if it is not a positive finite number, naming `name`.
    """
    if not callable(schedule):
        return schedule
    value = _number(schedule(k), name)
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be positive and finite at every step, but at step {k} is {value}.")
    return value


def _number(value: float, name: str) -> float:
    """Return a value as a number, naming what it belongs to where it is none."""
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError):
        pass
    found = type(value).__name__
    raise ValueError(f"`{name}` must be a number, or a function of the step that returns one, but got {found}.")
