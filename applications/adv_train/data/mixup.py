"""Mixup: each image of a training batch is blended with another image of the batch (Zhang et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """What mixup blended into the images of a batch.

    Attributes:
        y: Labels of the images that were blended in, shape ``(batch,)``, int64.
        share: Weight of the batch's own images and labels, shape ``()``; the others have the weight ``1 - share``.
    """

    y: Tensor
    share: Tensor

    def repeated(self, times: int) -> Mixture:
        """Return the mixture of a batch that holds these samples several times, one whole batch after another."""
        return Mixture(self.y.repeat(times), self.share)

    def part(self, chosen: slice) -> Mixture:
        """Return the mixture of some of the samples."""
        return Mixture(self.y[chosen], self.share)


@dataclass(frozen=True)
class Mixup:
    """Draws how the batches of one epoch are mixed.

    The random numbers depend only on the attributes and on the sizes of the batches. They have a source of their own,
    so the order of the images, their augmentation and the noise of attacks are those of a run without mixup.

    Attributes:
        alpha: The share of a batch follows the distribution Beta(alpha, alpha), which is uniform for 1.
        seed: Seed of the run, from 0.
        epoch: Number of the epoch, from 0.
    """

    alpha: float
    seed: int
    epoch: int

    def draw(self, sizes: Sequence[int], device: torch.device | str) -> list[tuple[Tensor, Tensor]]:
        """Draw for each batch of the epoch the partner of each image and the share of the image itself.

        Args:
            sizes: Number of images of each batch, on all ranks together.
            device: Device of the images.

        Returns:
            For each batch a permutation of its images, shape ``(size,)``, int64, and a number in [0, 1], shape ``()``.
        """
        random = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch], spawn_key=(2,)))
        shares = random.beta(self.alpha, self.alpha, len(sizes))
        partners = np.concatenate([random.permutation(size) for size in sizes])
        # Two copies for the whole epoch: a copy in each step would make the host wait for the device.
        on_device = torch.as_tensor(partners, device=device).split(list(sizes))
        return list(
            zip(on_device, torch.as_tensor(shares, dtype=torch.get_default_dtype(), device=device), strict=True)
        )
