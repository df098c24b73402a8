"""Random crops, flips and rotations of a whole batch at once, on the device that holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from adv_train.data.split import to_unit_range


@dataclass(frozen=True)
class Augment:
    """The augmentation of a training set: shift, then flip, then rotate, each sample by its own draw.

    Attributes:
        padding: Samples move by up to this many pixels each way; black comes in at the edges.
        flip: Whether a sample is mirrored left to right with probability one half.
        rotation: Samples turn by up to this many degrees each way.
    """

    padding: int = 4
    flip: bool = True
    rotation: float = 0.0

    def __str__(self) -> str:
        parts = [
            f"shift by up to {self.padding} pixels" if self.padding else "",
            "flip left to right" if self.flip else "",
            f"turn by up to {self.rotation:g} degrees" if self.rotation else "",
        ]
        return ", ".join(part for part in parts if part) or "none"

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment ``(batch, channels, height, width)`` images; uint8 comes back as float32 in [0, 1]."""
        n, device = len(images), images.device
        shift = _integers(n, 2, high=2 * self.padding + 1, generator=generator).to(device) - self.padding
        mirror = _integers(n, high=2, generator=generator).to(device).bool() & self.flip
        images = to_unit_range(shift_and_flip(images, shift, mirror))
        if not self.rotation:
            return images
        turn = torch.rand(n, generator=generator, device=generator.device).to(device) * 2 - 1
        return rotate(images, turn * self.rotation)


AUGMENTATIONS: Final[Mapping[str, Augment | None]] = {
    "none": None,
    "flip": Augment(padding=0),
    "crop": Augment(flip=False),
    "flip-crop": Augment(),
}


def shift_and_flip(images: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Crop each image from its zero-padded self, then mirror some: a padded random crop with its draws given.

    Args:
        images: Shape ``(batch, channels, height, width)``, any dtype.
        shift: Shape ``(batch, 2)``, int64: pixel ``(i, j)`` of the crop is pixel ``(i, j) + shift`` of the
            image.
        mirror: Shape ``(batch,)``, bool: which crops are mirrored left to right.

    Returns:
        Images like the given ones, in the same memory layout whatever the draws.
    """
    n, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + shift[:, :1]
    columns = torch.arange(width, device=device).expand(n, width)
    columns = torch.where(mirror[:, None], width - 1 - columns, columns) + shift[:, 1:]
    rows, columns = rows[:, None, :, None], columns[:, None, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    # An index for each of the four axes keeps them in order: with a slice for the channels the result would
    # be a channels-last view. Reading inside and blanking afterwards is padding without a padded copy.
    sample = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return images[sample, channel, rows.clamp(0, height - 1), columns.clamp(0, width - 1)] * inside


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image about its centre by its own angle, to the nearest pixel, black outside.

    The batched form of ``torchvision.transforms.functional.rotate``, which takes one angle a call.

    Args:
        images: Shape ``(batch, channels, height, width)``, floating point.
        degrees: Shape ``(batch,)``, counter-clockwise.
    """
    height, width = images.shape[-2:]
    angle = degrees.to(images.dtype) * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Where each output pixel comes from, in coordinates over [-1, 1] along either side: hence the ratios.
    source_x = torch.stack([cos, -sin * (height / width), zero], dim=1)
    source_y = torch.stack([sin * (width / height), cos, zero], dim=1)
    grid = functional.affine_grid(torch.stack([source_x, source_y], dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _integers(*shape: int, high: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device)
