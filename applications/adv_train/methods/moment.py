"""The position of a step in the run, and the memory of a method between steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

#: Maps names to the tensors that a method keeps between steps. A run saves them.
State: TypeAlias = Mapping[str, Tensor]

#: What the rows of a memory belong to: the training images, or the places in a batch; `"run"` is a memory without such
#: rows. A memory of the run is equal on all ranks, a memory of images is equal on all ranks between epochs, and a
#: memory of places holds each rank's own places.
Keeps: TypeAlias = Literal["run", "images", "places"]


class Moment(NamedTuple):
    """The position of a step in the run.

    The fields are tensors of shape `()` on the device: a captured step reads their present values at each replay.

    Attributes:
        step: Index of the step, from 0.
        steps: Number of steps in the whole run.
        epoch: Index of the epoch, from 0.
    """

    step: Tensor
    steps: Tensor
    epoch: Tensor


class Sizes(NamedTuple):
    """The sizes from which a method makes its memory.

    Attributes:
        images: Shape of all training images, `(samples, channels, height, width)`.
        classes: Number of classes.
        batch: Largest number of images in a step; the last batch of an epoch may be smaller.
    """

    images: torch.Size
    classes: int
    batch: int
