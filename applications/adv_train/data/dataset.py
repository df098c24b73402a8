"""A data set: three disjoint splits, and the properties that models and recipes need."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from adv_train.data.augment import Augment
from adv_train.data.large import fits_on
from adv_train.data.record import SplitRecord
from adv_train.data.split import Split


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in three splits.

    Attributes:
        name: Name of the data set, as given to `load`.
        train: Images to fit the weights on.
        validation: Images to choose a checkpoint by.
        test: Images to report the accuracies on.
        class_names: Names of the classes, in the order of the labels.
        mean: Mean of each channel over the training images, which are in [0, 1].
        std: Standard deviation of each channel over the training images.
        augment: Augmentation of the training images, or None.
        record: The files of each split, if each image is a file of an image folder; `load` can restore the splits.
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
        """Number of channels of an image: 1 for grey, 3 for colour."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.train.images.shape[-1]

    def model_arguments(self) -> dict[str, int | list[float]]:
        """Return the keyword arguments for `adv_train.models.create`, as plain values for YAML or JSON."""
        return {
            "channels": self.channels,
            "classes": self.classes,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def describe(self) -> str:
        """Describe the data set in one line: classes, sizes of the splits, image shape, augmentation."""
        shown = ", ".join(self.class_names[:10]) + (", ..." if self.classes > 10 else "")
        height, width = self.train.images.shape[-2:]
        return (
            f"{self.name}: {self.classes} classes ({shown}); {len(self.train)} images to train on, "
            f"{len(self.validation)} for validation, {len(self.test)} to test; {self.channels} x {height} x {width}; "
            f"augmentation: {self.augment or 'none'}"
        )

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set with every split on another device.

        If the training images take more than half of the free memory of an accelerator, they stay where they are, and
        `batches` copies each batch.
        """
        fits = fits_on(torch.device(device), self.train.images)
        return replace(
            self,
            train=self.train.to(device, images=fits),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )
