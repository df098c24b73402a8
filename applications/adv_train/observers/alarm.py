"""Warn if training makes no progress, or if the model overfits to the attack of training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.evaluation import overfitting
from adv_train.observers.base import OBSERVERS, Observer

_EPOCHS = 5
_NEAR = 0.005
_ONE_CLASS = 0.99


@OBSERVERS.register("alarm")
class Alarm(Observer):
    """Warns if the model has learnt nothing for five epochs, or has overfitted to its attack; each warning comes once.

    The model has learnt nothing if the loss stays at ln K, the loss of guessing among K classes, or if the model puts
    (nearly) all validation images in one class. The observer also reports each rollback to an earlier epoch.

    Args:
        history: Records of the epochs that an earlier process finished.
    """

    _chance: float
    _many: bool
    _attacks: bool

    def __init__(self, history: Sequence[Mapping[str, Any]] = ()) -> None:
        #: Observers whose method `alarm` is called with each warning.
        self.listeners: Sequence[Observer] = ()
        self._before = tuple(history)

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Reset the state, and store the number of classes and whether one class dominates the validation images."""
        self._epochs, self._warned, self._history = {"loss": 0, "class": 0}, set[str](), list(self._before)
        self._attacks = config.method.attacks
        self._chance = math.log(dataset.classes)
        labels = dataset.validation.labels
        self._many = int(labels.bincount().max()) < _ONE_CLASS * len(labels)

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """Check the loss, the predictions and the accuracies of this epoch, also against those of earlier epochs."""
        self._history.append(record)
        if (epoch := record.get("rolled_back_to")) is not None:
            self._ring(f"Epoch {record['epoch']} overfitted to its attack: training continues from epoch {epoch}.")
        if self._attacks and "overfitting" not in self._warned and (said := overfitting(self._history)) is not None:
            self._warned.add("overfitting")
            self._ring(f"{said} Try --rollback, a smaller --eps or another method, and evaluate best.pt.")
        self._see(
            "loss",
            abs(record["loss"] - self._chance) < _NEAR * self._chance,
            f"the loss has stayed at {record['loss']:.3f}, the loss of guessing among all classes ({self._chance:.3f})",
        )
        top = record["val_top_class"]
        self._see(
            "class",
            self._many and top >= _ONE_CLASS,
            f"the predictions have collapsed: the model puts {top:.1%} of the validation images in one class",
        )

    def _see(self, kind: str, is_so: bool, what: str) -> None:
        self._epochs[kind] = self._epochs[kind] + 1 if is_so else 0
        if self._epochs[kind] == _EPOCHS and kind not in self._warned:
            self._warned.add(kind)
            self._ring(f"For {_EPOCHS} epochs, {what}. The model learns nothing: try a smaller --eps or --lr.")

    def _ring(self, message: str) -> None:
        for listener in self.listeners:
            listener.alarm(message)
        warnings.warn(message, stacklevel=3)
