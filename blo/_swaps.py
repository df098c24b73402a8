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
    """A block that holds a place, and the value that the place gets back when the block ends."""

    __slots__ = ("before", "thread")

    def __init__(self, before: Any, thread: int) -> None:
        self.before, self.thread = before, thread


#: The blocks that hold each place, in the order in which they began.
_blocks: dict[tuple[int, str], list[_Block]] = {}


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
    swaps, thread, entered = list(swaps), threading.get_ident(), []
    with _LOCK:
        # Torch runs the backward passes of accelerators in threads of its own, for which the caller waits.
        if alone and _held_elsewhere(swaps, thread) and not in_backward():
            raise StructureError(
                "a module must be evaluated in one thread at a time, but another thread is evaluating this one, or a "
                "module that shares parts with it. Give each thread a copy: "
                "blo.functionalize(copy.deepcopy(module), ...)."
            )
        for place, name, value in swaps:
            block = _Block(place.get(name, _ABSENT), thread)
            _blocks.setdefault((id(place), name), []).append(block)
            entered.append((place, name, block))
            place[name] = value
    try:
        yield
    finally:
        with _LOCK:
            # In reverse, since one block may swap a place twice.
            for place, name, block in reversed(entered):
                _leave(place, name, block)


def _held_elsewhere(swaps: Iterable[Swap], thread: int) -> bool:
    return any(block.thread != thread for place, name, _ in swaps for block in _blocks.get((id(place), name), ()))


def _leave(place: Any, name: str, block: _Block) -> None:
    blocks = _blocks[id(place), name]
    index = blocks.index(block)
    del blocks[index]
    if index < len(blocks):  # a block that began later still holds the place
        blocks[index].before = block.before
    elif block.before is _ABSENT:
        del place[name]
    else:
        place[name] = block.before
    if not blocks:
        del _blocks[id(place), name]
