"""Make a module callable, so that `import adv_train.evaluate` does not hide the function `adv_train.evaluate`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return vars(self)[self.__name__.rpartition(".")[2]](*arguments, **named)


def make_callable(name: str) -> None:
    """Make a call of an imported module call the function in it that has the module's name.

    Args:
        name: Full name of the module.
    """
    sys.modules[name].__class__ = _Callable
