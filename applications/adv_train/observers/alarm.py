"""A word of warning when training does not get anywhere."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.observers.base import OBSERVERS, Observer

_EPOCHS = 5
_NEAR = 0.005


@OBSERVERS.register("alarm")
class Alarm(Observer):
    """Warns, once, when the loss has stayed at ln K for five epochs: the model knows nothing of its K classes."""

    def __init__(self) -> None:
        self._chance, self._flat, self._told = 0.0, 0, False

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Take note of the number of classes."""
        self._chance, self._flat, self._told = math.log(dataset.classes), 0, False

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """Look at the loss."""
        self._flat = self._flat + 1 if abs(record["loss"] - self._chance) < _NEAR * self._chance else 0
        if self._flat == _EPOCHS and not self._told:
            self._told = True
            warnings.warn(
                f"For {_EPOCHS} epochs the loss has stayed at {record['loss']:.3f}, that of guessing among all classes "
                f"({self._chance:.3f}): the model learns nothing. Try a smaller --eps or --lr.",
                stacklevel=2,
            )
