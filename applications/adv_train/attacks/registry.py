"""From an attack's name to the attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from adv_train.attacks.base import Attack
from adv_train.errors import UserError, unknown

_ATTACKS: dict[str, type[Attack]] = {}
_ABOUT: dict[str, str] = {}
AnyAttack = TypeVar("AnyAttack", bound=type[Attack])


def register(name: str, about: str) -> Callable[[AnyAttack], AnyAttack]:
    """Make the decorator that gives an attack its name.

    Args:
        name: As written on the command line and in records.
        about: One line for lists.
    """

    def keep(attack: AnyAttack) -> AnyAttack:
        if name in _ATTACKS:
            raise ValueError(f"Two attacks are called `{name}`: {_ATTACKS[name].__module__} and {attack.__module__}.")
        _ATTACKS[name], _ABOUT[name] = attack, about
        return attack

    return keep


def names() -> tuple[str, ...]:
    """Every name that `create` knows, in alphabetical order."""
    _find()
    return tuple(sorted(_ATTACKS))


def describe(name: str) -> str:
    """Give the line about an attack."""
    return _ABOUT[_known(name)]


def options(name: str) -> dict[str, Any]:
    """Give the options of an attack with their defaults."""
    return {field.name: field.default for field in fields(_ATTACKS[_known(name)])}  # type: ignore[arg-type]


def create(name: str, **chosen: Any) -> Attack:
    """Build an attack.

    Raises:
        UserError: When the name or an option is unknown, or a value is out of its range.
    """
    valid = options(name)
    for option in chosen:
        if option not in valid:
            raise unknown(f"option of attack {name}", option, valid)
    return _ATTACKS[name](**chosen)


def name_of(attack: Attack) -> str:
    """Give the name under which an attack is registered.

    Raises:
        UserError: When it is not.
    """
    _find()
    for name, kind in _ATTACKS.items():
        if type(attack) is kind:
            return name
    raise UserError(f"The attack {type(attack).__name__} has no name: put `@register(name, about)` above its class.")


def _known(name: str) -> str:
    _find()
    if name not in _ATTACKS:
        raise unknown("attack", name, _ATTACKS)
    return name


def _find() -> None:
    """Import every file of this package, so that a new attack needs no other place that names it."""
    import adv_train.attacks as package

    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
