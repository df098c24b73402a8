"""Names for the parts that can be chosen: one file a part, found by looking through the folder of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from adv_train.errors import UserError, unknown

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])


class Registry(Generic[T]):
    """The frozen dataclasses of one kind by name; their fields are the options that a user has.

    Args:
        kind: What one is called in errors, such as `"method"`.
        package: The package whose modules register them; imported when a name is first asked for.
    """

    def __init__(self, kind: str, package: str) -> None:
        self._kind, self._package = kind, package
        self._found: dict[str, type[T]] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[C], C]:
        """Give a class a name, as a decorator. The first line of its docstring describes it in lists.

        Raises:
            ValueError: When another class has that name.
        """

        def named(chosen: C) -> C:
            taken = self._found.setdefault(name, chosen)
            if taken is not chosen and taken.__qualname__ != chosen.__qualname__:
                raise ValueError(f"{self._kind} {name!r} is {taken.__qualname__} already.")
            return chosen

        return named

    def names(self) -> list[str]:
        """Return all names, in the order of their modules."""
        if not self._complete:
            package = import_module(self._package)
            for module in iter_modules(package.__path__):
                import_module(f"{self._package}.{module.name}")
            self._complete = True
        return list(self._found)

    def find(self, name: str) -> type[T]:
        """Return the class of a name.

        Raises:
            UserError: For an unknown name, with the nearest one.
        """
        if name not in self.names():
            raise unknown(self._kind, name, self.names())
        return self._found[name]

    def describe(self, name: str) -> str:
        """Return one line on it."""
        return (self.find(name).__doc__ or "").splitlines()[0]

    def options(self, name: str) -> dict[str, Any]:
        """Return its options with their defaults; None stands for a default that follows from the rest."""
        chosen: Any = self.find(name)
        return {field.name: _default(field) for field in dataclasses.fields(chosen)}

    def create(self, name: str, **chosen: Any) -> T:
        """Return one with these options.

        Raises:
            UserError: For an unknown name, an option that it lacks, or a value that it cannot take.
        """
        known = self.options(name)
        for option in chosen:
            if option not in known:
                raise UserError(
                    f"{self._kind} {name!r} has no option `{option}`; it has {', '.join(known) or 'no options'}."
                )
        return self.find(name)(**chosen)


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()
