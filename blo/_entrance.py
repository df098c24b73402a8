"""Decorators of the public functions: they run outside `torch.compile`, and explain inputs that they cannot use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from blo import tree
from blo._autocast import without
from blo._autodiff import repeated, transforms_active
from blo._checkpoints import sound_checkpoints
from blo._torch import compiler_loaded
from blo.errors import StructureError

F = TypeVar("F", bound=Callable[..., Any])
_OUTSIDE: dict[Callable[..., Any], Callable[..., Any]] = {}


def outside_compile(function: F) -> F:
    """Run a function outside `torch.compile`.

    Inside `torch.compile` the caller's graph is split here; outside it nothing changes. A solve decides by values when
    to stop, and calls autograd itself, so compilers cannot trace it.
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


def backward_pass(function: F) -> F:
    """Run the backward pass of a solution outside `torch.compile`, with sound checkpoints and without autocast."""
    return outside_compile(sound_checkpoints(without(repeated.on()(function))))


def entrance(instead: str | None = None) -> Callable[[F], F]:
    """Return a decorator for public functions of `(..., theta, z0)`.

    It runs them with sound checkpoints, and explains the failure on tensors of the meta device, which have no values.

    Args:
        instead: for functions that return constants, the advice in the error of a call inside `torch.func` transforms.
            They run outside `torch.compile` and with gradients enabled.

    Raises:
        StructureError: when the function is called, inside transforms if it returns constants, and for tensors without
            values.
    """

    def decorate(function: F) -> F:
        prepared = sound_checkpoints(function)

        @functools.wraps(function)
        def called(*arguments: Any, **options: Any) -> Any:
            if instead is not None and transforms_active():
                raise StructureError(
                    f"`{function.__name__}` returns constants, so it cannot run inside torch.func.vmap, grad or "
                    f"another transform. {instead}"
                )
            try:
                # Constants: without gradients enabled the contribution of a moving set would be lost silently.
                with torch.set_grad_enabled(instead is not None or torch.is_grad_enabled()):
                    return prepared(*arguments, **options)
            except RuntimeError as error:
                if not any(leaf.is_meta for leaf in tree.tensors((arguments, options))):
                    raise
                raise StructureError(
                    "theta and z0 must hold numbers, but some are on the device 'meta'. Create them on a real device. "
                    "To compute shapes only, make a fixed number of steps (tol=None) with on_failure='ignore'."
                ) from error

        return called if instead is None else outside_compile(called)  # type: ignore[return-value]

    return decorate
