"""How many images a data set has and of which form: known of the published ones without having their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from adv_train.data.dataset import Dataset


@dataclass(frozen=True)
class Facts:
    """What follows from a data set before an image of it is looked at.

    Attributes:
        train: Images to fit weights on.
        validation: Images to choose a checkpoint by.
        test: Images to report.
        arguments: Of `adv_train.models.create`.
    """

    train: int
    validation: int
    test: int
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, dataset: Dataset) -> Facts:
        """Take them from a data set that is loaded."""
        return cls(len(dataset.train), len(dataset.validation), len(dataset.test), dataset.model_arguments())

    def limited(self, limit: int | None) -> Facts:
        """Give those of the data set when at most so many images are used of the training and validation splits."""
        if limit is None:
            return self
        return Facts(min(limit, self.train), min(limit, self.validation), self.test, self.arguments)


def _colour(classes: int, side: int, train: int, validation: int, test: int) -> Facts:
    form = {"channels": 3, "classes": classes, "image_size": side, "mean": [0.5] * 3, "std": [0.25] * 3}
    return Facts(train, validation, test, form)


#: By name. The mean and standard deviation are placeholders, which cost nothing and move no figure.
PUBLISHED_FACTS: Final[Mapping[str, Facts]] = MappingProxyType(
    {
        "cifar10": _colour(10, 32, 45_000, 5_000, 10_000),
        "cifar100": _colour(100, 32, 45_000, 5_000, 10_000),
        "tiny-imagenet": _colour(200, 64, 100_000, 5_000, 5_000),
    }
)
