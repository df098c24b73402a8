"""Random numbers of a batch: a rank draws those of all samples and keeps the rows of its own.

So all ranks stay at the same place of one stream, and a sample meets the same numbers however many ranks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adv_train.ranks.share import Share


class Stream(torch.Generator):
    """A generator that knows which part of a batch is drawn for."""

    share: Share | None = None


@contextmanager
def drawing_for(generator: torch.Generator | None, share: Share) -> Iterator[None]:
    """Draw for another part for a while."""
    if not isinstance(generator, Stream):
        yield
        return
    before, generator.share = generator.share, share
    try:
        yield
    finally:
        generator.share = before


def uniform(
    like: Tensor, low: float = 0.0, high: float = 1.0, *, generator: torch.Generator | None, times: int = 1
) -> Tensor:
    """Draw uniformly in [low, high], for each sample of the part.

    Args:
        like: Shape, dtype and device, with a row for each sample of the part.
        low: Smallest number.
        high: Largest number.
        generator: Source of randomness; only a `Stream` knows of other ranks.
        times: So many rows a sample: those of all samples, and then those of all samples again.
    """
    return _drawn(like, lambda empty: empty.uniform_(low, high, generator=generator), generator, times)


def normal(like: Tensor, std: float = 1.0, *, generator: torch.Generator | None) -> Tensor:
    """Draw from the normal distribution around zero, likewise."""
    return _drawn(like, lambda empty: empty.normal_(std=std, generator=generator), generator)


def coins(like: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Draw 0 or 1, likewise."""
    return _drawn(like, lambda empty: empty.bernoulli_(0.5, generator=generator), generator)


def exponential(like: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Draw from the exponential distribution of mean 1, likewise."""
    return _drawn(like, lambda empty: empty.exponential_(generator=generator), generator)


def _drawn(like: Tensor, fill: Callable[[Tensor], Tensor], generator: torch.Generator | None, times: int = 1) -> Tensor:
    share = (generator.share if isinstance(generator, Stream) else None) or Share(len(like))
    every = fill(like.new_empty(times * share.whole, *like.shape[1:]))
    if share.alone:
        return every
    own: Tensor = every.unflatten(0, (times, share.whole))[:, share.rows].flatten(0, 1)
    return own
