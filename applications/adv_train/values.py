"""Reading single values as people write them; each reader takes a value and its name and gives back a checked value."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from adv_train.errors import UserError, unknown

Option = int | float | str | bool
Reader = Callable[[object, str], Any]


def refused(name: str, rule: str, found: object) -> UserError:
    """Build the error for a value that breaks its rule: names the value, the rule, and what was found."""
    return UserError(f"`{name}` must be {rule}, but is {reprlib.repr(found)}.")


def parse_fraction(value: object, name: str = "eps", *, low: float = 0.0, high: float = 1.0) -> float:
    """Read a number written as people write budgets: ``8/255``, ``0.03``, ``1``.

    Args:
        value: Text, or a number as YAML reads it.
        name: What the number is, for the error.
        low: Smallest value allowed.
        high: Largest value allowed.

    Raises:
        UserError: When it is neither a number nor a fraction, is not finite, or lies outside ``[low, high]``.
    """
    number = _as_number(value)
    if number is None or not (math.isfinite(number) and low <= number <= high):
        raise refused(name, f"a number {_interval(low, high)}, written like 8/255 or 0.03", value)
    return number


def format_fraction(number: float) -> str | float:
    """Write a budget the way people read it: ``0.2``, and ``8/255`` where the decimals would be long."""
    levels = round(number * 255)
    return f"{levels}/255" if levels / 255 == number and len(repr(number)) > 6 else number


def number(low: float, high: float = math.inf) -> Reader:
    """Make a reader of numbers and fractions in ``[low, high]``."""
    return lambda value, name: parse_fraction(value, name, low=low, high=high)


def whole(low: int) -> Reader:
    """Make a reader of whole numbers of at least ``low``."""

    def read(value: object, name: str) -> int:
        number = _as_number(value)
        if number is None or not math.isfinite(number) or number != int(number) or number < low:
            raise refused(name, f"a whole number of at least {low}", value)
        # An int passes unchanged: a seed beyond 2**53 would lose digits as a float.
        return value if isinstance(value, int) else int(number)

    return read


def text(value: object, name: str) -> str:
    """Read one line of text that is not empty."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise refused(name, "a line of text", value)
    return value


def flag(value: object, name: str) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise refused(name, "true or false", value)
    return value


def one_of(valid: tuple[str, ...]) -> Reader:
    """Make a reader of the names in ``valid``."""

    def read(value: object, name: str) -> str:
        if not isinstance(value, str) or value not in valid:
            raise unknown(name, reprlib.repr(value).strip("'"), valid)
        return value

    return read


def optional(read: Reader) -> Reader:
    """Make a reader that lets ``None`` pass and leaves anything else to ``read``."""
    return lambda value, name: None if value is None else read(value, name)


def options(value: object, name: str) -> dict[str, Option]:
    """Read a mapping of options: numbers and fractions become numbers, names stay text, dashes are underscores."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise refused(name, "a mapping from option names to values", value)
    return {key.replace("-", "_"): _option(found, key) for key, found in value.items()}


def _option(value: object, name: str) -> Option:
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, str) and value[:1].isalpha() and _as_number(value) is None:
        return text(value, name)
    number = parse_fraction(value, name, low=-math.inf, high=math.inf)
    return int(number) if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() else number


def _as_number(value: object) -> float | None:
    try:
        if isinstance(value, str):
            top, slash, bottom = value.partition("/")
            return float(top) / float(bottom) if slash else float(top)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _interval(low: float, high: float) -> str:
    if math.isinf(high):
        return "that is finite" if math.isinf(low) else f"of at least {low:g}"
    return f"between {low:g} and {high:g}"
