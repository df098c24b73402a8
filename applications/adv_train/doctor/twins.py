"""Finds images of one split in another: byte for byte, mirrored, or nearly equal, which thumbnails preselect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from adv_train.data import Split
from adv_train.data.split import to_unit_range

Kind = Literal["the same", "mirrored", "nearly the same"]

_SIDE: Final = 8
"""Side of the grey thumbnails, in pixels."""

_LEAST_SIDE: Final = 16
"""Smallest side of images that are compared by thumbnails; smaller images have too little detail."""

# Largest root mean square differences of twins, in units of the range. In CIFAR-10 and Tiny-ImageNet, the nearest pairs
# that are not twins differ by 0.014 as thumbnails and by 0.055 as images. Saving a CIFAR image as JPEG again at quality
# 60 changes 99 % of the images by less than 0.009 and 0.045.
_THUMBNAILS: Final = 0.0125
_IMAGES: Final = 0.05
_OF_CONTRAST: Final = 0.25
"""Largest difference of twins as a share of the image's standard deviation, because all flat images are alike."""

_PART: Final = 1000


@dataclass(frozen=True)
class Twin:
    """A test image and its twin among the training images.

    Attributes:
        kind: How the two agree.
        test: Index in the test split.
        train: Index in the training split.
    """

    kind: Kind
    test: int
    train: int


def find_twins(train: Split, test: Split) -> list[Twin]:
    """Find the test images that are among the training images, each once, in the order of the test split.

    Args:
        train: Images ``(n, C, H, W)``.
        test: Images of the same shape and type.
    """
    known = {row: index for index, row in reversed(list(enumerate(_rows(train.images))))}
    found: dict[int, Twin] = {}
    for kind, images in _exact(test.images).items():
        for index, row in enumerate(_rows(images)):
            if row in known:
                found.setdefault(index, Twin(kind, index, known[row]))
    if min(test.images.shape[2:]) >= _LEAST_SIDE:
        for index, twin in _near(train.images, test.images):
            found.setdefault(index, Twin("nearly the same", index, twin))
    return [found[index] for index in sorted(found)]


def _exact(images: Tensor) -> dict[Kind, Tensor]:
    return {"the same": images, "mirrored": images.flip(-1)}


def _rows(images: Tensor) -> list[bytes]:
    """Return the bytes of each image."""
    array = np.ascontiguousarray(images.cpu().numpy()).reshape(len(images), -1)
    return [row.tobytes() for row in array]


def _near(train: Tensor, test: Tensor) -> list[tuple[int, int]]:
    """Return pairs whose thumbnails are nearest neighbours and whose images differ little."""
    small = _thumbnails(train)
    brightness, order = small.mean(1).sort()
    small, pairs = small[order], []
    for flip in (False, True):
        shown = test.flip(-1) if flip else test
        thumbnails = _thumbnails(shown)
        # The difference of two thumbnails is at least that of their brightness, so thumbnails are compared only with
        # those of similar brightness.
        for part in thumbnails.mean(1).argsort().split(_PART // 4):
            first, last = thumbnails[part].mean(1)[[0, -1]].tolist()
            ends = brightness.new_tensor([first - 2 * _THUMBNAILS, last + 2 * _THUMBNAILS])
            low, high = torch.searchsorted(brightness, ends).tolist()
            if low == high:
                continue
            distance, nearest = torch.cdist(thumbnails[part], small[low:high]).min(1)
            for place in (distance / _SIDE < _THUMBNAILS).nonzero().flatten().tolist():
                index, twin = int(part[place]), int(order[low + nearest[place]])
                image = to_unit_range(shown[index])
                apart = float((image - to_unit_range(train[twin])).square().mean().sqrt())
                if apart < min(_IMAGES, _OF_CONTRAST * float(image.std())):
                    pairs.append((index, twin))
    return pairs


def _thumbnails(images: Tensor) -> Tensor:
    """Return grey images of 8 x 8 pixels, as rows; made in parts, since floats need four times the memory of bytes."""
    return torch.cat(
        [
            adaptive_avg_pool2d(to_unit_range(part).mean(1, keepdim=True), _SIDE).flatten(1)
            for part in images.split(_PART)
        ]
    )
