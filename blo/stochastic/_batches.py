"""Sources of minibatches: iterators that the caller owns, so that states contain no random generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor

from blo.errors import StructureError

T = TypeVar("T")


def draw(batches: Sequence[T], generator: torch.Generator | None = None) -> Iterator[T]:
    """Return an endless iterator over uniform, independent draws from a list of batches.

    `SABA` needs the number of each batch: draw from `list(enumerate(batches))`.

    Args:
        batches: a list with at least one batch.
        generator: a generator on the CPU; torch's default generator if None. To continue a run with bitwise equal
            numbers, save its `get_state()` with the state of the algorithm.

    Raises:
        StructureError: if the list is empty.
    """
    # The check is not in the generator function below, which would only run it at the first draw.
    if not len(batches):
        raise StructureError("`batches` must hold at least one batch, but it is empty.")
    return _draws(batches, generator)


def _draws(batches: Sequence[T], generator: torch.Generator | None) -> Iterator[T]:
    while True:
        # On the CPU, whatever the default device: reading a number from an accelerator would wait for it.
        yield batches[int(torch.randint(len(batches), (), generator=generator, device="cpu"))]


class Stream:
    """A stream of batches for one objective, which counts the batches that are taken from it."""

    def __init__(self, batches: Iterable[Any] | None, name: str) -> None:
        """Open the stream.

        Args:
            batches: an iterator, which is read from its current position; any other iterable, which is read from its
                start; or None for an objective without batches.
            name: the name of the argument, for error messages.

        Raises:
            StructureError: if `batches` looks like a single batch.
        """
        # A single batch is often a tensor, dict or tuple, and iterating over it would silently yield single examples.
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
            StructureError: if no batch is left.
        """
        for batch in self._source:
            self.count += 1
            return batch
        raise StructureError(
            f"`{self._name}` ran out after {self.count} batches of this step, which needs more. Pass an endless "
            "iterator, such as `blo.stochastic.draw(list_of_batches, generator)`."
        )


def endless(batches: Iterable[T] | None, taken: int = 0) -> Iterable[T] | None:
    """Return an iterator unchanged, and repeat any other iterable (a list, a `DataLoader`) without end.

    Args:
        batches: as given to `run`.
        taken: number of batches that earlier calls took. An iterable of known length is read from this position.
    """
    # What looks like a single batch is passed on to `Stream`, which raises the error.
    if batches is None or isinstance(batches, Iterator | Tensor | dict | tuple | str):
        return batches
    if not isinstance(batches, Iterable):
        return batches
    return _restarted(batches, taken % max(1, _known_length(batches)))


def _known_length(batches: Iterable[Any]) -> int:
    """Return the length, or 0 where it is unknown: a `DataLoader` over an `IterableDataset` has a `len` that raises."""
    try:
        return len(batches) if isinstance(batches, Sized) else 0
    except TypeError:
        return 0


def fixed(batches: Iterable[Any] | None) -> bool:
    """Return whether the argument shows that every draw gives the same batch."""
    return batches is None or (isinstance(batches, Sequence) and len(batches) == 1)


def _restarted(batches: Iterable[T], skipped: int) -> Iterator[T]:
    if isinstance(batches, Sequence):
        yield from batches[skipped:]
    else:
        yield from islice(batches, skipped, None)
    # An iterable that yields nothing would make this loop endless, so it ends after an empty pass.
    empty = False
    while not empty:
        empty = True
        for batch in batches:
            empty = False
            yield batch
