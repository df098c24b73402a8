"""Parametrizations without their cache, which would give all evaluations the weights of the first."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from torch.nn.utils import parametrize

_LOCK = threading.Lock()
_depth = _taken = 0


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Compute weights anew in the block, also inside `torch.nn.utils.parametrize.cached()`.

    Torch counts the open `cached()` blocks of all threads in one number. Blocks of `uncached` overlap, and a `cached()`
    of another thread may begin or end meanwhile: the first block takes the number away, and the last one adds it again.
    """
    global _depth, _taken
    with _LOCK:
        if not _depth:
            _taken, parametrize._cache_enabled = parametrize._cache_enabled, 0
        _depth += 1
    try:
        yield
    finally:
        with _LOCK:
            _depth -= 1
            if not _depth:
                parametrize._cache_enabled += _taken
                if not parametrize._cache_enabled:
                    parametrize._cache = {}
