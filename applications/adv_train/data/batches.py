"""The order in which a split is seen, all randomness drawn from one generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from adv_train.data.augment import Augment
from adv_train.data.motion import Motion
from adv_train.data.split import Split, to_unit_range
from adv_train.errors import UserError
from adv_train.ranks import ALONE, Ranks, Share, Stream


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples of a split.

    Attributes:
        x: Images, shape ``(batch, channels, height, width)``, in [0, 1].
        y: Labels, shape ``(batch,)``, int64.
        index: Position of each sample in the split, shape ``(batch,)``, int64, on the device of the images.
        motion: How augmentation moved the images from where they lie in the split.
        share: Which part of a batch they are; None for all of it.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    motion: Motion = field(default_factory=Motion)
    share: Share | None = None

    @property
    def part(self) -> Share:
        """The part, also where it is the whole."""
        return self.share or Share(len(self.y))


def epoch_generator(
    seed: int, epoch: int, device: torch.device | str = "cpu", *, purpose: Literal["data", "method"] = "data"
) -> Stream:
    """Make the generator of one epoch, a function of its arguments alone.

    An epoch that starts from it does not depend on the epochs before, so a run that was interrupted goes on
    exactly. The numbers are mixed by a hash: seed 1 in epoch 2 shares nothing with seed 2 in epoch 1.

    Args:
        seed: Of the run, from 0.
        epoch: Number of the epoch, from 0.
        device: Where the random numbers are drawn.
        purpose: What they are for. Order and augmentation have a generator of their own, so that two methods see the
            same images, however many numbers each draws.
    """
    key = {"data": (), "method": (1,)}[purpose]
    (mixed,) = np.random.SeedSequence([seed, epoch], spawn_key=key).generate_state(1, np.uint64)
    stream = Stream(device)
    stream.manual_seed(int(mixed >> np.uint64(1)))
    return stream


def batch_bounds(samples: int, batch_size: int, ranks: int = 1) -> list[tuple[int, int]]:
    """Give the first and one past the last position of every training batch of an epoch.

    No sample is dropped: the last batch is smaller, or, where it would hold a *single* sample of a rank, or none, joins
    the batch before it. BatchNorm has no variance of one value, so a lone sample raises an error where features
    have shrunk to one pixel and gives a useless gradient elsewhere; dropping it would leave out a sample in
    every epoch.

    Raises:
        UserError: When the batch size is below 1, or below 2 for more than one sample; or a rank would have less.
    """
    if ranks > 1 and min(samples, batch_size) < 2 * ranks:
        raise UserError(
            f"Each of {ranks} ranks needs two samples of every batch, since BatchNorm does, but {samples} images in "
            f"batches of {batch_size} give them fewer: take a larger batch size, or fewer processes."
        )
    if batch_size < 2 <= samples or batch_size < 1:
        raise UserError(f"The batch size must be at least 2, since BatchNorm needs two samples, but is {batch_size}.")
    starts = list(range(0, samples, batch_size))
    if len(starts) > 1 and samples - starts[-1] < 2 * ranks:
        starts.pop()
    return list(zip(starts, [*starts[1:], samples], strict=True))


def batches(
    split: Split,
    batch_size: int,
    *,
    generator: torch.Generator,
    augment: Augment | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Batch]:
    """Go once through a split in random order.

    Args:
        split: What to go through.
        batch_size: Samples a batch; see `batch_bounds` for the last one.
        generator: The only source of randomness. On the device of the split no draw crosses devices; a CPU
            generator works everywhere and then draws the same numbers for every device.
        augment: Applied to every batch.
        ranks: Those that share every batch; each draws for all of it.

    Yields:
        Batches with contiguous images.
    """
    device = split.images.device
    order = torch.randperm(len(split), generator=generator, device=generator.device).to(device)
    for start, stop in batch_bounds(len(split), batch_size, ranks.size):
        share = Share(stop - start, ranks)
        chosen = order[start:stop][share.rows]
        images = split.images[chosen]
        motion = augment.draw(images, generator, share) if augment else Motion()
        yield Batch(to_unit_range(motion.apply(images)), split.labels[chosen], chosen, motion, share)


def ordered_batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once through a split as it lies, for evaluation: nothing is random, no sample is left out.

    Yields:
        Images ``(batch, channels, height, width)`` in [0, 1] and labels ``(batch,)``.
    """
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        yield to_unit_range(images), labels
