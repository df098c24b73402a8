"""Warnings at the line of the caller's code; in a loop, one for each kind."""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from blo.errors import BloWarning

#: Files that cannot be the caller's: those of this package and of torch, whose decorators and backward passes call it.
_INSIDE = (*(str(Path(file).parent) + os.sep for file in (__file__, torch.__file__)), contextlib.__file__)

#: The kinds of warnings that a loop has given; None outside loops.
_GIVEN: contextvars.ContextVar[set[tuple[type, str]] | None] = contextvars.ContextVar("given", default=None)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@contextlib.contextmanager
def one_of_a_kind(given: set[tuple[type, str]]) -> Iterator[None]:
    """Suppress a warning that differs from one in `given` only by its numbers; other warnings are added to the set."""
    token = _GIVEN.set(given)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def warn(message: str, category: type[BloWarning]) -> None:
    """Warn at the line of the caller's code, so that the default filter shows each of its lines once."""
    given, kind = _GIVEN.get(), (category, _NUMBER.sub("", message))
    if given is not None:
        if kind in given:
            return
        given.add(kind)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
