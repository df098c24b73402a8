"""How augmentation moved the images of a batch, so that perturbations of them can be moved in the same way and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from adv_train.data.split import to_unit_range


@dataclass(frozen=True, eq=False)
class Motion:
    """A shift of each image, then a flip of some images, then a rotation of each; by default nothing moves.

    Attributes:
        shift: Shape ``(batch, 2)``, int64, as in `shift_and_flip`; None without shifts and flips.
        mirror: Shape ``(batch,)``, bool, as in `shift_and_flip`; None without shifts and flips.
        degrees: Shape ``(batch,)``, as in `rotate`; None without rotations.
    """

    shift: Tensor | None = None
    mirror: Tensor | None = None
    degrees: Tensor | None = None

    def of(self, rows: slice | Tensor) -> Motion:
        """Return the motion of some of the images."""
        parts = (self.shift, self.mirror, self.degrees)
        return Motion(*(None if part is None else part[rows] for part in parts))

    def apply(self, images: Tensor) -> Tensor:
        """Move tensors of shape ``(batch, channels, height, width)`` as the images were moved; zeros enter at edges.

        A rotation converts uint8 to float32 in [0, 1].
        """
        if self.shift is not None and self.mirror is not None:
            images = shift_and_flip(images, self.shift, self.mirror)
        return images if self.degrees is None else rotate(to_unit_range(images), self.degrees)

    def undo(self, moved: Tensor, old: Tensor) -> Tensor:
        """Move tensors back to the original positions of the pixels.

        Shifts and flips are undone exactly, rotations to the nearest pixel.

        Args:
            moved: Values at the pixels of the augmented images, shape ``(batch, channels, height, width)``, floating
                point.
            old: Values to return for pixels that the motion moved out of the image, of the same shape.
        """
        return torch.where(self._back(torch.ones_like(moved[:, :1])) > 0, self._back(moved), old)

    def _back(self, moved: Tensor) -> Tensor:
        if self.degrees is not None:
            moved = rotate(moved, -self.degrees)
        if self.shift is None or self.mirror is None:
            return moved
        # A mirrored column runs backwards, so its shift is undone with the same sign.
        columns = torch.where(self.mirror, self.shift[:, 1], -self.shift[:, 1])
        return shift_and_flip(moved, torch.stack([-self.shift[:, 0], columns], dim=1), self.mirror)


def shift_and_flip(images: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Crop each image after zero padding, then mirror some: a padded random crop, for given random draws.

    Args:
        images: Shape ``(batch, channels, height, width)``, any dtype.
        shift: Shape ``(batch, 2)``, int64: pixel ``(i, j)`` of the crop is pixel ``(i, j) + shift`` of the
            image.
        mirror: Shape ``(batch,)``, bool: which crops are mirrored left to right.

    Returns:
        Images of the same shape and dtype; their memory layout does not depend on the draws.
    """
    n, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + shift[:, :1]
    columns = torch.arange(width, device=device).expand(n, width)
    columns = torch.where(mirror[:, None], width - 1 - columns, columns) + shift[:, 1:]
    rows, columns = rows[:, None, :, None], columns[:, None, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    # Each of the four axes has an index, which keeps their order: with a slice for the channels the result would be a
    # channels-last view. Clamping the index and zeroing outside the image replaces padding and needs no padded copy.
    sample = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return images[sample, channel, rows.clamp(0, height - 1), columns.clamp(0, width - 1)] * inside


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre by its own angle, with nearest-neighbour sampling and black outside.

    This is ``torchvision.transforms.functional.rotate`` for a batch of angles.

    Args:
        images: Shape ``(batch, channels, height, width)``, floating point.
        degrees: Shape ``(batch,)``, counter-clockwise.
    """
    height, width = images.shape[-2:]
    angle = degrees.to(images.dtype) * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # The source of each output pixel, in coordinates that run over [-1, 1] along either side; hence the ratios.
    source_x = torch.stack([cos, -sin * (height / width), zero], dim=1)
    source_y = torch.stack([sin * (width / height), cos, zero], dim=1)
    grid = functional.affine_grid(torch.stack([source_x, source_y], dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)
