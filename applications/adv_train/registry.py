"""Registries of the parts that a user can choose by name; importing the modules of a package registers its parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from adv_train.errors import UserError, unknown
from adv_train.leaves import Leaf, leaves
from adv_train.written import name_and_options

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Maps names to the classes or functions that make the parts of one kind.

    The parameters with a default are the options that a user can set.

    Args:
        kind: The word for a part in errors, such as `"method"`.
        package: The package whose modules register the parts; they are imported when a name is first looked up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self._kind, self._package = kind, package
        self._makers: dict[str, Callable[..., T]] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that registers a class or function under a name.

        Lists show the first line of its docstring.

        Raises:
            ValueError: If another class or function has that name.
        """

        def named(maker: F) -> F:
            taken = self._makers.setdefault(name, maker)
            if taken is not maker and taken.__qualname__ != maker.__qualname__:
                raise ValueError(f"Two are called {self._kind} {name!r}: {taken.__module__} and {maker.__module__}.")
            return maker

        return named

    def names(self) -> list[str]:
        """Return all names, in the order of their modules."""
        if not self._complete:
            package = import_module(self._package)
            for module in iter_modules(package.__path__):
                import_module(f"{self._package}.{module.name}")
            self._complete = True
        return list(self._makers)

    def find(self, name: str) -> Callable[..., T]:
        """Return the class or function of this name.

        Raises:
            UserError: If the name is unknown; the message suggests the nearest one.
        """
        if not isinstance(name, str) or name not in self.names():
            raise unknown(self._kind, str(name), self.names())
        return self._makers[name]

    def describe(self, name: str) -> str:
        """Return the first line of the docstring of the part with this name."""
        return (inspect.getdoc(self.find(name)) or "").splitlines()[0]

    def options(self, name: str) -> dict[str, Leaf]:
        """Return the options of the part with this name; a default of None depends on other values."""
        return {leaf.field: leaf for leaf in leaves(self.find(name)) if not leaf.required}

    def create(self, name: str, *arguments: Any, **chosen: Any) -> T:
        """Make a part with these options, each converted to its type.

        Args:
            name: Name of the part.
            *arguments: The arguments without default, which every part of this kind takes.
            **chosen: Options, as text or as values.

        Raises:
            UserError: If the name is unknown, the part has no such option, or a value is wrong.
        """
        return self.find(name)(*arguments, **self._checked(name, chosen))

    def read(self, text: object, name: str) -> T:
        """Make the part that a text such as `pgd` or `pgd(steps=20, restarts=2)` describes.

        Args:
            text: The text that the user wrote.
            name: Name of the setting, for the error.

        Raises:
            UserError: If the text does not have this form, or as in `create`.
        """
        part, options = self.parsed(text, name)
        return self.find(part)(**options)

    def parsed(self, text: object, name: str) -> tuple[str, dict[str, Any]]:
        """Parse such a text into the name of the part and its options, converted to their types.

        Args:
            text: The text that the user wrote.
            name: Name of the setting, for the error.

        Raises:
            UserError: If the text does not have this form, or as in `create`.
        """
        part, options = name_and_options(text, name)
        return part, self._checked(part, options)

    def written(self, part: T) -> str:
        """Return the text from which `read` makes this part."""
        name = self.name_of(part)
        chosen = {key: getattr(part, key) for key in self.options(name)}
        told = [
            f"{key}={'none' if chosen[key] is None else chosen[key]}"
            for key, leaf in self.options(name).items()
            if chosen[key] != leaf.default
        ]
        return f"{name}({', '.join(told)})" if told else name

    def name_of(self, part: T) -> str:
        """Return the name under which the class of a part is registered.

        Raises:
            UserError: If the class is not registered.
        """
        for name in self.names():
            if type(part) is self._makers[name]:
                return name
        raise UserError(f"The {self._kind} {type(part).__name__} has no name: put `register(name)` above its class.")

    def _checked(self, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        known = self.options(name)
        for option in chosen:
            if option not in known:
                raise UserError(
                    f"{self._kind} {name!r} has no option `{option}`; it has {', '.join(known) or 'no options'}."
                )
        return {option: known[option].read(value) for option, value in chosen.items()}
