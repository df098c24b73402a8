"""The parameters of a class or function as a user sees them: name, type, default and one line of description."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from adv_train import values


@dataclass(frozen=True)
class Leaf:
    """One parameter.

    Attributes:
        field: Name of the parameter.
        hint: Its type, see `adv_train.values.reader`.
        default: Its default, if it has one.
        required: Whether it has no default.
        help: Its description in the docstring, in one line.
    """

    field: str
    hint: Any
    default: Any
    required: bool
    help: str

    def read(self, value: object, name: str | None = None) -> Any:
        """Convert a value to the parameter's type, and check it.

        Args:
            value: Text as the user wrote it, or a value of the type.
            name: The user's name of the parameter, for the error; by default its own name.

        Raises:
            UserError: If the value does not have the type, or is out of its range.
        """
        return values.reader(self.hint)(value, name or self.field)


def leaves(maker: Callable[..., Any]) -> list[Leaf]:
    """Return the parameters of a class or function, in their order."""
    return list(_leaves(maker))


@cache  # parsing types and docstrings takes a millisecond, and a command needs the parameters of each method many times
def _leaves(maker: Callable[..., Any]) -> tuple[Leaf, ...]:
    # For a dataclass, take the types from the class and not from `__init__`: an inherited field may have a type that
    # the module of the class does not import.
    plain_class = inspect.isclass(maker) and not is_dataclass(maker)
    hints = get_type_hints(maker.__init__ if plain_class else maker, include_extras=True)
    told = _told(maker)
    return tuple(
        Leaf(name, hints.get(name), found.default, found.default is found.empty, told.get(name, ""))
        for name, found in inspect.signature(maker).parameters.items()
        if found.kind is not found.VAR_KEYWORD
    )


def _told(maker: Callable[..., Any]) -> dict[str, str]:
    """Return the description of each parameter in the docstrings; a class inherits those of its bases."""
    from docstring_parser import parse  # Not at the top: `import adv_train` works without it.

    bases = reversed(maker.__mro__) if inspect.isclass(maker) else [maker]
    told: dict[str, str] = {}
    for base in bases:
        for found in parse(base.__doc__ or "").params:
            told[found.arg_name] = re.sub(r"`+\"?|\"?`+", "", " ".join((found.description or "").split()))
    return told
