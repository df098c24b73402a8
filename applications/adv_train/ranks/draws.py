"""Random numbers for a batch: each rank draws those of all samples and keeps the rows of its own samples.

So the generators of all ranks stay in the same state, and the numbers of a sample do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adv_train.ranks.share import Share


class Stream(torch.Generator):
    """A generator that knows for which share of a batch it draws."""

    share: Share | None = None


@contextmanager
def drawing_for(generator: torch.Generator | None, share: Share) -> Iterator[None]:
    """Draw for another share within the block."""
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
    """Draw uniformly in [low, high] for each sample of this rank's share.

    Args:
        like: Gives shape, dtype and device; it has a row for each sample of the share.
        low: Smallest number.
        high: Largest number.
        generator: Source of randomness. A `Stream` also draws the numbers of the other ranks' samples.
        times: Number of rows to draw for each sample; the rows of all samples come once, then a second time, and so on.
    """
    return _drawn(like, lambda empty: empty.uniform_(low, high, generator=generator), generator, times)


def normal(like: Tensor, std: float = 1.0, *, generator: torch.Generator | None) -> Tensor:
    """Draw from the normal distribution with mean 0, with the arguments of `uniform`."""
    return _drawn(like, lambda empty: empty.normal_(std=std, generator=generator), generator)


def coins(like: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Draw 0 or 1 with equal probability, with the arguments of `uniform`."""
    return _drawn(like, lambda empty: empty.bernoulli_(0.5, generator=generator), generator)


def exponential(like: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Draw from the exponential distribution with mean 1, with the arguments of `uniform`."""
    return _drawn(like, lambda empty: empty.exponential_(generator=generator), generator)


def _drawn(like: Tensor, fill: Callable[[Tensor], Tensor], generator: torch.Generator | None, times: int = 1) -> Tensor:
    share = (generator.share if isinstance(generator, Stream) else None) or Share(len(like))
    every = fill(like.new_empty(times * share.whole, *like.shape[1:]))
    if share.alone:
        return every
    own: Tensor = every.unflatten(0, (times, share.whole))[:, share.rows].flatten(0, 1)
    return own
