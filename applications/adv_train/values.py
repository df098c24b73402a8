"""Readers, which convert single values as people write them to a type, and check them."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from adv_train.errors import UserError, unknown

Reader: TypeAlias = Callable[[object, str], Any]
#: Bounds of numbers without a bound of their own: single precision overflows beyond, and so may products of counts.
_LARGEST, _MOST = 3.4e38, 10**9


@dataclass(frozen=True)
class Range:
    """The range of a number, used as in `Annotated[float, Range(0, 1)]`."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False  # exclude `low` itself


Count: TypeAlias = Annotated[int, Range(1)]
Seed: TypeAlias = Annotated[int, Range(0, 2**64 - 1)]  # what `torch.manual_seed` takes
NotNegative: TypeAlias = Annotated[float, Range(0)]
Positive: TypeAlias = Annotated[float, Range(0, open=True)]


class Checked:
    """A dataclass that converts its fields to their types, and checks them, when it is made; see `reader`.

    Raises:
        UserError: If a value does not have its type, or is out of its range.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = reader(hints[field.name])(getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)


def reader(hint: Any) -> Reader:
    """Make the reader of a type: a function of a value and its name that returns the converted and checked value.

    Numbers may be written as fractions, and the None of an optional number as `none`. A class that has a method `read`
    is read by this method.

    Args:
        hint: `bool`, `int`, `float`, `str`, a `Literal` of texts, a mapping, a class with `read`, one of these or None,
            a number within `Annotated[..., Range(...)]`, such a number or a `Literal`, or a `tuple[..., ...]` of one of
            these.
    """
    if get_origin(hint) is Annotated:
        kind, limits = get_args(hint)
        return _whole(limits) if kind is int else _number(limits)
    if get_origin(hint) in (Union, types.UnionType):
        kind, *words = (kind for kind in get_args(hint) if kind is not types.NoneType)
        if words:
            return _or_word(reader(kind), get_args(*words))
        nothing = (None, "none") if get_origin(kind) is Annotated or kind in (int, float) else (None,)
        return lambda value, name: None if value in nothing else reader(kind)(value, name)
    if get_origin(hint) is tuple:
        return _several(reader(get_args(hint)[0]))
    if get_origin(hint) is Literal:
        return one_of(get_args(hint))
    if get_origin(hint) in (Mapping, dict):
        return mapping
    plain: dict[Any, Reader] = {
        bool: flag,
        int: _whole(Range()),
        float: _number(Range()),
        str: text,
        Path: lambda value, name: Path(text(str(value), name)),
    }
    found: Reader = plain.get(hint) or getattr(hint, "read", None) or _instance_of(hint)
    return found


def refused(name: str, rule: str, found: object) -> UserError:
    """Return the error for a wrong value, with the name of the value, the rule and the value found."""
    return UserError(f"`{name}` must be {rule}, but is {reprlib.repr(found)}.")


def parse_fraction(value: object, name: str = "eps", limits: Range = Range(0, 1)) -> float:
    """Read a number written as people write budgets: ``8/255``, ``0.03``, ``1``.

    Args:
        value: Text, or a number as YAML reads it.
        name: Name of the value, for the error.
        limits: Range of the number.

    Raises:
        UserError: If the value is neither a number nor a fraction, is not finite, or is out of its range.
    """
    number = _as_number(value)
    if number is not None and _LARGEST < abs(number) < math.inf and limits.high == math.inf:
        raise refused(name, f"at most {_LARGEST:g} in size, beyond which single precision overflows", value)
    inside = number is not None and math.isfinite(number) and limits.low <= number <= limits.high
    if number is None or not inside or (limits.open and number == limits.low):
        raise refused(name, f"a number {_interval(limits)}, written like 8/255 or 0.03", value)
    return number


def format_fraction(number: float) -> str | float:
    """Write a budget as people write it: ``0.2``, or ``8/255`` if the decimals would be long."""
    levels = round(number * 255)
    return f"{levels}/255" if levels / 255 == number and len(repr(number)) > 6 else number


def text(value: object, name: str) -> str:
    """Read one line of text that is not empty."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise refused(name, "a line of text", value)
    return value


def flag(value: object, name: str) -> bool:
    """Read true or false, as a value or as a word."""
    value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise refused(name, "true or false", value)
    return value


def one_of(valid: tuple[str, ...]) -> Reader:
    """Make a reader of the names in ``valid``."""

    def read(value: object, name: str) -> str:
        if value is False and "off" in valid:  # YAML reads `off` without quotes as False
            return "off"
        if not isinstance(value, str) or value not in valid:
            raise unknown(name, reprlib.repr(value).strip("'"), valid)
        return value

    return read


def _or_word(read_number: Reader, words: tuple[str, ...]) -> Reader:
    def read(value: object, name: str) -> Any:
        if value in words:
            return value
        try:
            return read_number(value, name)
        except UserError as error:
            raise UserError(f"{error} Or write {' or '.join(words)}.") from None

    return read


def _instance_of(kind: type[Any]) -> Reader:
    def read(value: object, name: str) -> Any:
        if not isinstance(value, kind):
            raise refused(name, f"a {kind.__name__}", value)
        return value

    return read


def mapping(value: object, name: str) -> dict[str, Any]:
    """Read a mapping from names to anything, also from text such as `eps=1e-6, betas=[0.9, 0.95]`."""
    found = _pairs(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise refused(name, "a mapping from names to values, on the command line like eps=1e-6,betas=[0.9,0.95]", value)
    return dict(found)


def _pairs(text: str) -> dict[str, Any] | None:
    import yaml  # Not at the top: `import adv_train` works without the packages that only the command line needs.

    pairs = [pair.partition("=") for pair in re.split(r",(?![^\[]*\])", text) if pair.strip()]
    try:
        return (
            {key.strip(): yaml.safe_load(value) for key, _, value in pairs} if all(pair[1] for pair in pairs) else None
        )
    except yaml.YAMLError:
        return None


def _several(read: Reader) -> Reader:
    def read_all(value: object, name: str) -> tuple[Any, ...]:
        parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            raise refused(name, "a list, written like 70,85", value)
        return tuple(read(part, name) for part in parts)

    return read_all


def _number(limits: Range) -> Reader:
    return lambda value, name: parse_fraction(value, name, limits)


def _whole(limits: Range) -> Reader:
    most = int(limits.high) if math.isfinite(limits.high) else _MOST
    rule = "a whole number" + (f" of at least {limits.low:g}" if math.isfinite(limits.low) else "")

    def read(value: object, name: str) -> int:
        number = _as_number(value)
        if number is None or not math.isfinite(number) or number != int(number) or number < limits.low:
            raise refused(name, rule, value)
        # An int passes unchanged: a seed beyond 2**53 would lose digits as a float.
        exact = value if isinstance(value, int) else _exactly(value, number)
        if abs(exact) > most:
            raise refused(name, f"a whole number of at most {most}", value)
        return exact

    return read


def _exactly(value: object, number: float) -> int:
    return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() else int(number)


def _as_number(value: object) -> float | None:
    try:
        if isinstance(value, str):
            top, slash, bottom = value.partition("/")
            return float(top) / float(bottom) if slash else float(top)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _interval(limits: Range) -> str:
    if math.isfinite(limits.high):
        return f"between {limits.low:g} and {limits.high:g}"
    if math.isinf(limits.low):
        return "that is finite"
    return f"above {limits.low:g}" if limits.open else f"of at least {limits.low:g}"
