"""A split of a data set, stored on one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

SplitName = Literal["train", "validation", "test"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation", "test")


def to_unit_range(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1]; return floating-point images unchanged."""
    return images if images.is_floating_point() else images.float() / 255


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    The whole split stays on the device, as uint8 if the source is uint8: CIFAR-10 takes 180 MB, and no batch waits for
    a disk or for a copy between devices. Training images that do not fit there stay in the memory of the host.

    Attributes:
        images: Shape ``(n, channels, height, width)``: uint8 in [0, 255], or float32 in [0, 1].
        labels: Shape ``(n,)``, int64, on the device that computes.
        names: Path of the file of each image, relative to the data set's folder; None if images are not single files.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, *, images: bool = True) -> Split:
        """Return the split on another device; with ``images=False`` the images stay where they are."""
        return Split(self.images.to(device) if images else self.images, self.labels.to(device), self.names)

    def subset(self, indices: Tensor) -> Split:
        """Return the samples at ``indices``, an int64 tensor of shape ``(m,)``."""
        names = None if self.names is None else tuple(self.names[i] for i in indices.tolist())
        return Split(self.images[indices], self.labels[indices], names)
