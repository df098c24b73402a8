"""When in training a step is made, and what a method keeps between steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

#: Maps names to the tensors that a method keeps between steps. A run saves them.
State: TypeAlias = Mapping[str, Tensor]

#: What the rows of the memory belong to: the training images, the places in a batch, or all of it to the run. Ranks
#: hold the memory of a run alike, that of images alike between epochs, and that of their own places.
Keeps: TypeAlias = Literal["run", "images", "places"]


class Moment(NamedTuple):
    """When in training a step is made, as tensors of shape `()` on the device, so that a captured step sees it move.

    Attributes:
        step: Number of the step, from 0.
        steps: Steps of the whole run.
        epoch: Number of the epoch, from 0.
    """

    step: Tensor
    steps: Tensor
    epoch: Tensor


class Sizes(NamedTuple):
    """What the shape of a memory can follow from.

    Attributes:
        images: Shape of all training images, `(samples, channels, height, width)`.
        classes: Number of classes.
        batch: Most images in a step; the last batch of an epoch may be smaller.
    """

    images: torch.Size
    classes: int
    batch: int
