"""Random crops, flips and rotations of a whole batch at once, on the device that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from adv_train.data.motion import Motion
from adv_train.data.split import to_unit_range


@dataclass(frozen=True)
class Augment:
    """The augmentation of a training set: shift, then flip, then rotate each image, by independent random amounts.

    Attributes:
        padding: Largest shift in pixels in each direction; pixels that enter at the edges are black.
        flip: Whether an image is mirrored left to right with probability one half.
        rotation: Largest rotation in degrees in each direction.
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
        """Augment images of shape ``(batch, channels, height, width)``; uint8 images become float32 in [0, 1]."""
        return to_unit_range(self.draw(images, generator).apply(images))

    def draw(self, images: Tensor, generator: torch.Generator) -> Motion:
        """Draw a motion for each row of a tensor, such as images or their positions, on its device."""
        n, device = len(images), images.device
        shift = _integers(n, 2, high=2 * self.padding + 1, generator=generator).to(device) - self.padding
        mirror = _integers(n, high=2, generator=generator).to(device).bool() & self.flip
        if not self.rotation:
            return Motion(shift, mirror)
        turn = torch.rand(n, generator=generator, device=generator.device).to(device) * 2 - 1
        return Motion(shift, mirror, turn * self.rotation)


AUGMENTATIONS: Final[Mapping[str, Augment | None]] = {
    "none": None,
    "flip": Augment(padding=0),
    "crop": Augment(flip=False),
    "flip-crop": Augment(),
}


def _integers(*shape: int, high: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device)
