"""The parameters of a class or function as a user sees them: name, type, default and a line of description."""

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
        field: Its name.
        hint: Its type, see `adv_train.values.reader`.
        default: Its default, where it has one.
        required: It has none.
        help: What the docstring says of it, in one line.
    """

    field: str
    hint: Any
    default: Any
    required: bool
    help: str

    def read(self, value: object, name: str | None = None) -> Any:
        """Read a value by the rule of the type.

        Args:
            value: As written, or of the type already.
            name: What the user calls it, for the error; by default its own name.

        Raises:
            UserError: When the value breaks the rule.
        """
        return values.reader(self.hint)(value, name or self.field)


def leaves(maker: Callable[..., Any]) -> list[Leaf]:
    """Return the parameters of a class or function, in their order."""
    return list(_leaves(maker))


@cache  # reading types and docstrings takes a millisecond, and a command asks for those of each method many times
def _leaves(maker: Callable[..., Any]) -> tuple[Leaf, ...]:
    # Of a dataclass the class knows the types of inherited fields, which its own module need not know.
    plain_class = inspect.isclass(maker) and not is_dataclass(maker)
    hints = get_type_hints(maker.__init__ if plain_class else maker, include_extras=True)
    told = _told(maker)
    return tuple(
        Leaf(name, hints.get(name), found.default, found.default is found.empty, told.get(name, ""))
        for name, found in inspect.signature(maker).parameters.items()
        if found.kind is not found.VAR_KEYWORD
    )


def _told(maker: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstrings say of each parameter; a class inherits what its bases say."""
    from docstring_parser import parse  # Not at the top: `import adv_train` works without it.

    bases = reversed(maker.__mro__) if inspect.isclass(maker) else [maker]
    told: dict[str, str] = {}
    for base in bases:
        for found in parse(base.__doc__ or "").params:
            told[found.arg_name] = re.sub(r"`+\"?|\"?`+", "", " ".join((found.description or "").split()))
    return told
