"""Whether an objective may draw random numbers or read an iterator, as far as its code shows it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

_SOURCES = frozenset({torch.Generator, np.random.Generator, np.random.RandomState, random.Random})
#: Types of values that neither are sources nor hold any.
_INERT = frozenset({bool, complex, dict, float, int, list, np.ndarray, str, torch.Tensor, tuple, type(None)})
#: Packages whose functions are not searched.
_KNOWN = ("torch", "numpy", "blo")
#: How deep the search follows functions that functions name.
_DEPTH = 3


def may_draw(function: Any) -> bool:
    """Return whether a function, or one that it names, holds a generator or an iterator, or names a module `random`.

    This proves nothing: it is only a reason to compare two evaluations. A function that counts its calls, or reads data
    that change, is not found. While a compiler traces, the answer is False.
    """
    return not torch.compiler.is_compiling() and _may_draw([function], _DEPTH, set())


def _may_draw(values: Iterable[Any], depth: int, seen: set[int]) -> bool:
    for value in values:
        kind = type(value)
        if kind in _INERT or id(value) in seen or isinstance(value, torch.Tensor):
            continue
        seen.add(id(value))
        if _is_source(kind) or (kind in (MethodType, BuiltinMethodType) and _is_source(type(value.__self__))):
            return True
        if depth and (value is random or _may_draw_inside(value, depth - 1, seen)):
            return True
    return False


def _is_source(kind: type) -> bool:
    return hasattr(kind, "__next__") or not _SOURCES.isdisjoint(kind.__mro__)


def _may_draw_inside(value: Any, depth: int, seen: set[int]) -> bool:
    if isinstance(value, MethodType):
        return _may_draw([value.__func__, *_attributes(value.__self__)], depth, seen)
    if isinstance(value, partial):
        return _may_draw([value.func, *value.args, *value.keywords.values()], depth + 1, seen)
    if not isinstance(value, FunctionType):
        return not isinstance(value, type) and _may_draw(_attributes(value), min(depth, 1), seen)
    if (value.__module__ or "").split(".")[0] in _KNOWN:
        return False
    names, known = _names(value.__code__), value.__globals__
    if "random" in names:
        return True
    cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
    return _may_draw([*cells, *(value.__defaults__ or ()), *(known[n] for n in names if n in known)], depth, seen)


def _names(code: CodeType) -> set[str]:
    """Return the names of globals and attributes in a function, and in those defined inside it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found


def _attributes(value: Any) -> Iterable[Any]:
    known = (torch.nn.Module, ModuleType)
    inert = isinstance(value, known) or type(value).__module__.split(".")[0] in _KNOWN
    return [] if inert else [*getattr(value, "__dict__", {}).values()]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that has no value yet
        return False
