"""Where minibatches come from: iterators that the caller owns, so that no generator hides in a state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor

from blo.errors import StructureError

T = TypeVar("T")


def draw(batches: Sequence[T], generator: torch.Generator | None = None) -> Iterator[T]:
    """Return an endless iterator over batches drawn uniformly, each draw independent of the others.

    For `SABA`, which asks for the number of each batch, draw from `list(enumerate(batches))`.

    Args:
        batches: at least one.
        generator: a generator on the CPU; torch's own when None. To continue a run bit for bit, save its `get_state()`
            beside the state of the algorithm.

    Raises:
        StructureError: if there is no batch.
    """
    if not len(batches):
        raise StructureError("`batches` must hold at least one batch, but it is empty.")
    return _draws(batches, generator)


def _draws(batches: Sequence[T], generator: torch.Generator | None) -> Iterator[T]:
    while True:
        yield batches[int(torch.randint(len(batches), (), generator=generator, device="cpu"))]


class Stream:
    """Batches for one objective, handed out one at a time."""

    def __init__(self, batches: Iterable[Any] | None, name: str) -> None:
        """Start reading.

        Args:
            batches: an iterator, read on from where it stands; any other iterable, read from its start; or None for
                an objective without batches.
            name: what errors call it.

        Raises:
            StructureError: if `batches` looks like a single batch.
        """
        if isinstance(batches, Tensor | dict | tuple | str) or not (batches is None or isinstance(batches, Iterable)):
            raise StructureError(
                f"`{name}` must be an iterator or a list of batches, but is {type(batches).__name__}. "
                "Put a single batch in a list."
            )
        self._name = name
        self.count = 0
        self._source = repeat(None) if batches is None else iter(batches)

    def next(self) -> Any:
        """Return the next batch.

        Raises:
            StructureError: if there is none.
        """
        for batch in self._source:
            self.count += 1
            return batch
        raise StructureError(
            f"`{self._name}` ran out after {self.count} batches of this step, which needs more. Pass an endless "
            "iterator, such as `blo.stochastic.draw(list_of_batches, generator)`."
        )


def endless(batches: Iterable[T] | None, taken: int = 0) -> Iterable[T] | None:
    """Return an iterator as it is, and any other iterable (a list, a `DataLoader`) begun anew whenever it ends.

    Args:
        batches: as given to `run`.
        taken: batches that earlier calls have taken: where an iterable of known length is read on.
    """
    if batches is None or isinstance(batches, Iterator | Tensor | dict | tuple | str):
        return batches
    if not isinstance(batches, Iterable):
        return batches
    return _restarted(batches, taken % max(1, len(batches)) if isinstance(batches, Sized) else 0)


def fixed(batches: Iterable[Any] | None) -> bool:
    """Tell whether all batches are one and the same, as far as the argument shows."""
    return batches is None or (isinstance(batches, Sequence) and len(batches) == 1)


def _restarted(batches: Iterable[T], skipped: int) -> Iterator[T]:
    if isinstance(batches, Sequence):
        yield from batches[skipped:]
    else:
        yield from islice(batches, skipped, None)
    empty = False
    while not empty:
        empty = True
        for batch in batches:
            empty = False
            yield batch
