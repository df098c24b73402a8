"""Decorators of the public functions: they run outside `torch.compile`, and explain inputs that they cannot use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from blo import tree
from blo._autodiff import transforms_active
from blo._checkpoints import sound_checkpoints
from blo._torch import compiler_loaded
from blo.errors import StructureError

F = TypeVar("F", bound=Callable[..., Any])
_OUTSIDE: dict[Callable[..., Any], Callable[..., Any]] = {}


def outside_compile(function: F) -> F:
    """Run a function outside `torch.compile`: this breaks the graph of a compiled caller, and does nothing elsewhere.

    A solve decides by values when to stop, and calls autograd itself, so compilers cannot trace it.
    """

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        # Importing the compiler takes seconds. If it has not been imported, nothing is compiled.
        if not torch.compiler.is_compiling() and not compiler_loaded():
            return function(*arguments, **options)
        if function not in _OUTSIDE:
            _OUTSIDE[function] = torch.compiler.disable(function)
        return _OUTSIDE[function](*arguments, **options)

    return called  # type: ignore[return-value]


def entrance(instead: str) -> Callable[[F], F]:
    """Return a decorator for public functions of `(..., theta, z0)` that return constants.

    It runs outside `torch.compile`, with gradients enabled and with sound checkpoints.

    Args:
        instead: the advice in the error of a call inside `torch.func` transforms.

    Raises:
        StructureError: when the function is called, inside transforms and for tensors without values.
    """

    def decorate(function: F) -> F:
        prepared = with_numbers(sound_checkpoints(function))

        @functools.wraps(function)
        def called(*arguments: Any, **options: Any) -> Any:
            if transforms_active():
                raise StructureError(
                    f"`{function.__name__}` returns constants, so it cannot run inside torch.func.vmap, grad or a "
                    f"relative. {instead}"
                )
            with torch.enable_grad():  # without it the contribution of a moving set would be lost silently
                return prepared(*arguments, **options)

        return outside_compile(called)  # type: ignore[return-value]

    return decorate


def with_numbers(function: F) -> F:
    """Explain the failure of a function of `(..., theta, z0)` on tensors of the meta device, which have no values.

    Raises:
        StructureError: when the function is called.
    """

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (RuntimeError, NotImplementedError) as error:
            given = [leaf for leaf in tree.tensors((arguments, options)) if leaf.is_meta]
            if not given or isinstance(error, StructureError):
                raise
            raise StructureError(
                "theta and z0 must hold numbers, but some are on the device 'meta'. Make them on a real device; for "
                "shapes alone solve by a fixed number of steps (tol=None) with on_failure='ignore'."
            ) from error

    return called  # type: ignore[return-value]
