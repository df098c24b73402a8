"""Sizes of the splits and shape of the images of a data set; for published ones they are known without the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from adv_train.data.dataset import Dataset


@dataclass(frozen=True)
class Facts:
    """Sizes of the splits of a data set and shape of its images.

    Attributes:
        train: Number of training images.
        validation: Number of validation images.
        test: Number of test images.
        arguments: Keyword arguments for `adv_train.models.create`.
    """

    train: int
    validation: int
    test: int
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, dataset: Dataset) -> Facts:
        """Return the facts of a loaded data set."""
        return cls(len(dataset.train), len(dataset.validation), len(dataset.test), dataset.model_arguments())

    def limited(self, limit: int | None) -> Facts:
        """Return the facts of the data set when its training and validation splits are limited to so many images."""
        if limit is None:
            return self
        return Facts(min(limit, self.train), min(limit, self.validation), self.test, self.arguments)


def _colour(classes: int, side: int, train: int, validation: int, test: int) -> Facts:
    form = {"channels": 3, "classes": classes, "image_size": side, "mean": [0.5] * 3, "std": [0.25] * 3}
    return Facts(train, validation, test, form)


#: Facts of published data sets, by name. Mean and standard deviation are placeholders: they do not affect the cost.
PUBLISHED_FACTS: Final[Mapping[str, Facts]] = MappingProxyType(
    {
        "cifar10": _colour(10, 32, 45_000, 5_000, 10_000),
        "cifar100": _colour(100, 32, 45_000, 5_000, 10_000),
        "tiny-imagenet": _colour(200, 64, 100_000, 5_000, 5_000),
    }
)
