"""Values that a block puts in the place of others, where the blocks of several threads may overlap."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from blo._torch import in_backward
from blo.errors import StructureError

#: A dict, or an object that has its `get` and `[name] = value`; the name there; and the value to put there.
Swap: TypeAlias = tuple[Any, str, Any]
_ABSENT = object()
_LOCK = threading.Lock()


class _Block:
    """The thread of a block, and the places that it holds with the values that they get back when it ends."""

    __slots__ = ("held", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.held: dict[_Key, tuple[Any, Any]] = {}


_Key: TypeAlias = tuple[int, str]
#: The blocks that hold each place, in the order in which they began.
_blocks: dict[_Key, tuple[_Block, ...]] = {}


@contextlib.contextmanager
def swapped(swaps: Iterable[Swap], *, alone: bool = False) -> Iterator[None]:
    """Put values in places during the block.

    If blocks overlap without one being inside the other, as those of two threads do, the first to end leaves the value
    of the other, and the last to end brings back what was there before both.

    Args:
        swaps: what to put where.
        alone: whether other threads may not hold these places.

    Raises:
        StructureError: if `alone`, and another thread holds one of the places. Nothing has been written then.
    """
    swaps, block = list(swaps), _Block()
    with _LOCK:
        held = {(id(place), name): (place, place.get(name, _ABSENT)) for place, name, _ in swaps}
        # Torch runs the backward passes of accelerators in threads of its own, for which the caller waits.
        if alone and _held_elsewhere(held) and not in_backward():
            raise StructureError(
                "a module must be evaluated in one thread at a time, but another thread is evaluating this one, or a "
                "module that shares parts with it. Give each thread a copy: "
                "blo.functionalize(copy.deepcopy(module), ...)."
            )
        block.held = held
        for key in held:
            _blocks[key] = (*_blocks.get(key, ()), block)
        for place, name, value in swaps:
            place[name] = value
    try:
        yield
    finally:
        with _LOCK:
            for key, (place, before) in block.held.items():
                _leave(block, key, place, before)


def _held_elsewhere(keys: Iterable[_Key]) -> bool:
    thread = threading.get_ident()
    return any(block.thread != thread for key in keys if key in _blocks for block in _blocks[key])


def _leave(block: _Block, key: _Key, place: Any, before: Any) -> None:
    blocks, name = _blocks.pop(key), key[1]
    if blocks[-1] is not block:  # the block that began next gives the value back
        later = blocks[blocks.index(block) + 1]
        later.held[key] = place, before
    elif before is _ABSENT:
        del place[name]
    else:
        place[name] = before
    if len(blocks) > 1:
        _blocks[key] = tuple(one for one in blocks if one is not block)
