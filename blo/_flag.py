"""Switches that hold inside a `with` block, in each thread and task for itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar


class Flag:
    """A switch that is off except inside `with flag.on()`; `@flag.on()` makes a whole function such a block."""

    def __init__(self, name: str) -> None:
        self._value: ContextVar[bool] = ContextVar(name, default=False)

    def __bool__(self) -> bool:
        return self._value.get()

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Switch it on in the block."""
        token = self._value.set(True)
        try:
            yield
        finally:
            self._value.reset(token)
