"""Names for the parts that can be chosen: one file a part, found by looking through the package of its kind."""

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
    """What makes the parts of one kind, by name. A parameter with a default is an option that a user has.

    Args:
        kind: What one is called in errors, such as `"method"`.
        package: The package whose modules register them; imported when a name is first asked for.
    """

    def __init__(self, kind: str, package: str) -> None:
        self._kind, self._package = kind, package
        self._makers: dict[str, Callable[..., T]] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[F], F]:
        """Give a class or function a name, as a decorator. The first line of its docstring describes it in lists.

        Raises:
            ValueError: When another has that name.
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
        """Return what makes the part of a name.

        Raises:
            UserError: For an unknown name, with the nearest one.
        """
        if name not in self.names():
            raise unknown(self._kind, name, self.names())
        return self._makers[name]

    def describe(self, name: str) -> str:
        """Return one line on it."""
        return (inspect.getdoc(self.find(name)) or "").splitlines()[0]

    def options(self, name: str) -> dict[str, Leaf]:
        """Return its options, by name; a default of None stands for one that follows from the rest."""
        return {leaf.field: leaf for leaf in leaves(self.find(name)) if not leaf.required}

    def create(self, name: str, *arguments: Any, **chosen: Any) -> T:
        """Return one with these options, each read by the rule of its type.

        Args:
            name: Of the part.
            *arguments: What every part of the kind is made from.
            **chosen: Options, as text or as values.

        Raises:
            UserError: For an unknown name, an option that it lacks, or a value that it cannot take.
        """
        return self.find(name)(*arguments, **self._checked(name, chosen))

    def read(self, text: object, name: str) -> T:
        """Return what a text such as `pgd` or `pgd(steps=20, restarts=2)` stands for.

        Args:
            text: What was written.
            name: What it was written for, for the error.

        Raises:
            UserError: When it is not of that form, or as in `create`.
        """
        part, options = self.parsed(text, name)
        return self.find(part)(**options)

    def parsed(self, text: object, name: str) -> tuple[str, dict[str, Any]]:
        """Take such a text apart into the name of the part and its options, read by their types.

        Args:
            text: What was written.
            name: What it was written for, for the error.

        Raises:
            UserError: When it is not of that form, or as in `create`.
        """
        part, options = name_and_options(text, name)
        return part, self._checked(part, options)

    def written(self, part: T) -> str:
        """Return the text that `read` makes this part from."""
        name = self.name_of(part)
        told = [
            f"{key}={getattr(part, key)}"
            for key, leaf in self.options(name).items()
            if getattr(part, key) != leaf.default
        ]
        return f"{name}({', '.join(told)})" if told else name

    def name_of(self, part: T) -> str:
        """Return the name of the class of a part.

        Raises:
            UserError: When that class has none.
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
