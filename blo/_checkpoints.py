"""Activation checkpoints inside objectives: re-entrant ones would silently lose a gradient."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from blo.errors import StructureError

F = TypeVar("F", bound=Callable[..., Any])
#: Torch's error messages for features of plain autograd that transforms lack, and names of the features.
_UNTRANSFORMED = {
    "support saved tensor hooks": "checkpoints activations",
    "override the setup_context staticmethod": (
        "uses an autograd.Function without `setup_context`, as backward hooks of modules do"
    ),
}
_LOCK = threading.Lock()
_depth = 0


def sound_checkpoints(function: F) -> F:
    """Run a function in which `checkpoint(..., use_reentrant=True)` acts like `use_reentrant=False`.

    A re-entrant checkpoint differentiates only in those of its arguments that are tensors: the derivative in captured
    tensors and in those of a dict is lost, and `torch.autograd.grad` and `torch.func` do not work through it at all.
    The substitute is correct for every caller, so another thread may use it meanwhile.

    Raises:
        StructureError: when the function is called, if it uses checkpoints where torch does not support them.
    """

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        global _depth
        if torch.compiler.is_compiling():  # compilers cannot trace locks, and handle checkpoints themselves
            return function(*arguments, **options)
        # Calls nest, and those of several threads overlap: the last one to end restores torch's own function.
        with _LOCK:
            _depth += 1
            CheckpointFunction.apply = staticmethod(_apply)
        try:
            return function(*arguments, **options)
        except RuntimeError as error:
            found = next((what for words, what in _UNTRANSFORMED.items() if words in str(error)), None)
            if found is None or isinstance(error, StructureError):
                raise
            raise StructureError(
                f"the objective {found}, which torch cannot do inside torch.func transforms: use products='reverse', "
                "mode='reverse' and .backward() instead of torch.func, or remove this from the objective."
            ) from error
        finally:
            with _LOCK:
                _depth -= 1
                if not _depth:
                    del CheckpointFunction.apply  # restores torch's own

    return called  # type: ignore[return-value]


def _apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
    """Replace `CheckpointFunction.apply`; call the function without a checkpoint where torch supports none."""
    try:
        # Setting hooks raises an error under transforms, and where `functionalize` has disabled them.
        with saved_tensors_hooks(_same, _same):
            pass
    except RuntimeError:
        return function(*arguments)
    # The backward pass repeats the function, possibly after torch's own checkpoints have been restored.
    return checkpoint(sound_checkpoints(function), *arguments, use_reentrant=False, preserve_rng_state=preserve)


def _same(value: Any) -> Any:
    return value
