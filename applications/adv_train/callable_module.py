"""A module that has the name of its function: `import adv_train.evaluate` must not hide `adv_train.evaluate(...)`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return vars(self)[self.__name__.rpartition(".")[2]](*arguments, **named)


def make_callable(name: str) -> None:
    """Let calls of an imported module call its function of the same name.

    Args:
        name: Full name of the module.
    """
    sys.modules[name].__class__ = _Callable
