"""Checks that a callable can take the arguments with which it will be called."""

from __future__ import annotations

import inspect
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from blo.errors import StructureError

#: Names that people give to the upper and to the lower variable, and never to the other one.
_UPPER, _LOWER = {"theta", "thetas", "th", "t", "lam", "phi", "hparams"}, {"z", "z0", "zs"}


def require_function(given: Any, name: str, *arguments: str) -> None:
    """Check that `given` is a function of these arguments, and that its parameter names do not suggest z first.

    Args:
        given: the callable.
        name: its name in messages.
        arguments: the names of the arguments with which it will be called, theta first.

    Raises:
        StructureError: otherwise; the message contains the name.
    """
    wanted = " and ".join([", ".join(arguments[:-1]), arguments[-1]])
    if not callable(given) or isinstance(given, type):
        found = f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"
        raise StructureError(f"`{name}` must be a function of {wanted}, but is {found}.")
    if torch.compiler.is_compiling():  # not every compiler traces signatures
        return
    called = given.forward if isinstance(given, nn.Module) else given
    if _plainly_takes(called, len(arguments)):
        return
    try:
        signature = inspect.signature(called, follow_wrapped=False)  # a wrapper may reorder arguments
    except (TypeError, ValueError):  # builtins and compiled modules have no signature
        return
    try:
        bound = signature.bind(*arguments).arguments
    except TypeError:
        kind, remedy = "it", ""
        if isinstance(given, nn.Module):
            kind = f"{type(given).__name__}.forward"
            remedy = " Write it with blo.functionalize, which makes a function of a module's parameters."
        message = f"`{name}` must be a function of {wanted}, but {kind} takes {signature}.{remedy}"
        raise StructureError(message) from None
    first, second, *_ = [*bound, "", ""]
    if first in _LOWER and second in _UPPER:
        raise StructureError(
            f"`{name}` is called with {wanted} in this order, but its parameters are named {signature}. Put `{second}` "
            f"first."
        )


def _plainly_takes(called: Any, count: int) -> bool:
    """Return whether this is a plain function of so many arguments, the first not named like the lower variable.

    Building a signature takes 50 microseconds, as long as ten tensor operations; this test takes two.
    """
    bound = isinstance(called, MethodType)
    function = called.__func__ if bound else called
    if not isinstance(function, FunctionType):
        return False
    code, count = function.__code__, count + bound
    most, least = code.co_argcount, code.co_argcount - len(function.__defaults__ or ())
    return least <= count <= most and not code.co_kwonlyargcount and code.co_varnames[bound] not in _LOWER
