"""Iterate over a split in batches; all randomness comes from one generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from adv_train.data.augment import Augment
from adv_train.data.mixup import Mixture, Mixup
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
        motion: How augmentation moved the images of the split.
        share: The part of a batch that this rank has; None if it has the whole batch.
        mixture: What mixup blended into the images; None without mixup.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    motion: Motion = field(default_factory=Motion)
    share: Share | None = None
    mixture: Mixture | None = None

    @property
    def part(self) -> Share:
        """The share, also if it is the whole batch."""
        return self.share or Share(len(self.y))


def epoch_generator(
    seed: int, epoch: int, device: torch.device | str = "cpu", *, purpose: Literal["data", "method"] = "data"
) -> Stream:
    """Make the generator of one epoch; it depends only on the arguments.

    The random numbers of an epoch do not depend on earlier epochs, so an interrupted run resumes exactly. A hash mixes
    seed and epoch: the numbers of seed 1 in epoch 2 are unrelated to those of seed 2 in epoch 1.

    Args:
        seed: Seed of the run, from 0.
        epoch: Number of the epoch, from 0.
        device: Device that draws the random numbers.
        purpose: ``"data"`` for the order and the augmentation of the images, ``"method"`` for the training method. The
            two generators are separate, so that two methods see the same images however many numbers each draws.
    """
    key = {"data": (), "method": (1,)}[purpose]
    (mixed,) = np.random.SeedSequence([seed, epoch], spawn_key=key).generate_state(1, np.uint64)
    stream = Stream(device)
    stream.manual_seed(int(mixed >> np.uint64(1)))
    return stream


def batch_bounds(samples: int, batch_size: int, ranks: int = 1) -> list[tuple[int, int]]:
    """Return the first position and one past the last position of every training batch of an epoch.

    No sample is dropped. The last batch is smaller than the others; if a rank would have fewer than two of its samples,
    it is merged into the batch before it. BatchNorm needs a variance: with a single sample it raises an error if the
    features have shrunk to one pixel, and otherwise gives a useless gradient.

    Raises:
        UserError: If the batch size is below 1, or below 2 for more than one sample, or a rank would have fewer than
            two samples of a batch.
    """
    if ranks > 1 and min(samples, batch_size) < 2 * ranks:
        raise UserError(
            f"Each of {ranks} ranks needs two samples of every batch for BatchNorm, but {samples} images in "
            f"batches of {batch_size} give them fewer: take a larger batch size, or fewer processes."
        )
    if batch_size < 2 <= samples or batch_size < 1:
        raise UserError(f"The batch size must be at least 2, because BatchNorm needs two samples, but is {batch_size}.")
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
    mixup: Mixup | None = None,
    layout: torch.memory_format = torch.contiguous_format,
) -> Iterator[Batch]:
    """Iterate once over a split in random order.

    Args:
        split: The split to iterate over. If its images are on another device than its labels, each batch is copied to
            the device of the labels; the result is the same.
        batch_size: Samples in a batch; see `batch_bounds` for the last batch.
        generator: The only source of randomness. A generator on the device of the split avoids copies between devices;
            a CPU generator gives the same random numbers on every device.
        augment: Augmentation of every batch.
        ranks: The ranks that share every batch; each rank draws the random numbers of the whole batch.
        mixup: Draws how images are mixed; None does not mix them.
        layout: Memory layout of the images in a batch, that of the model which they are for.

    Yields:
        Batches with images that are contiguous in the layout.
    """
    device, home = split.labels.device, split.images.device
    order = torch.randperm(len(split), generator=generator, device=generator.device).to(device)
    bounds = batch_bounds(len(split), batch_size, ranks.size)
    places = order.to(home)  # once: moving indices to the host in each batch would make it wait for the device
    mixtures = mixup.draw([stop - start for start, stop in bounds], device) if mixup else [None] * len(bounds)
    for (start, stop), drawn in zip(bounds, mixtures, strict=True):
        share, whole, stored = Share(stop - start, ranks), order[start:stop], places[start:stop]
        motions = augment.draw(whole, generator) if augment else Motion()
        chosen, motion, mixture = whole[share.rows], motions.of(share.rows), None
        x = _augmented(split.images, stored[share.rows], motion, device)
        if drawn is not None:
            partners, weight = drawn[0][share.rows], drawn[1].to(x.dtype)
            # Partners of images on the host are read there: only with mixup, this makes it wait for the device.
            others = _augmented(split.images, stored[partners.to(home)], motions.of(partners), device)
            x = torch.lerp(others, x, weight)
            mixture = Mixture(split.labels[whole[partners]], weight)
        x = x.contiguous(memory_format=layout)
        yield Batch(x, split.labels[chosen], chosen, motion, share, mixture)


def _augmented(images: Tensor, rows: Tensor, motion: Motion, device: torch.device) -> Tensor:
    found = images[rows]
    if found.device != device:  # pinned, so that the host does not wait for the copy
        found = found.pin_memory().to(device, non_blocking=True)
    return to_unit_range(motion.apply(found))


def ordered_batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate once over a split in its own order, for evaluation: without randomness, and without leaving out samples.

    Yields:
        Images ``(batch, channels, height, width)`` in [0, 1] and labels ``(batch,)``.
    """
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        yield to_unit_range(images), labels
