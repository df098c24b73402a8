"""A data set: three splits that share no sample, and what a model and a recipe need to know of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from adv_train.data.augment import Augment
from adv_train.data.record import SplitRecord
from adv_train.data.split import Split


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in three splits.

    Attributes:
        name: As given to `load`.
        train: To fit weights on.
        validation: To choose a checkpoint by.
        test: To report.
        class_names: In the order of the labels.
        mean: Of each channel over the training images in [0, 1].
        std: Of each channel, likewise.
        augment: What the training images go through, or None.
        record: Which file is in which split, where each image has its own file; `load` replays it.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment | None
    record: SplitRecord | None = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Channels of an image: 1 for grey, 3 for colour."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.train.images.shape[-1]

    def model_arguments(self) -> dict[str, int | list[float]]:
        """Give the keyword arguments of `adv_train.models.create`, as plain values for YAML or JSON."""
        return {
            "channels": self.channels,
            "classes": self.classes,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def describe(self) -> str:
        """Say in one line what was chosen: classes, sizes of the splits, images, augmentation."""
        shown = ", ".join(self.class_names[:10]) + (", ..." if self.classes > 10 else "")
        height, width = self.train.images.shape[-2:]
        return (
            f"{self.name}: {self.classes} classes ({shown}); {len(self.train)} images to train on, "
            f"{len(self.validation)} for validation, {len(self.test)} to test; {self.channels} x {height} x {width}; "
            f"augmentation: {self.augment or 'none'}"
        )

    def to(self, device: torch.device | str) -> Dataset:
        """Give the same data set with every split on another device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )
