"""The interface of observers of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.registry import Registry


class Observer:
    """Receives the events of a run; it must not change the run.

    Each subclass is in its own module of this package, can be created without arguments, and is registered with
    `OBSERVERS.register`.
    """

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Called when training begins or is resumed.

        Args:
            config: Configuration of the run.
            dataset: The data set of the run.
            folder: The run folder.
            steps: Number of steps in an epoch.
            done: Number of epochs that an earlier process finished.
        """

    def step(self) -> None:
        """Called after each step."""

    def part(self, record: Mapping[str, Any]) -> None:
        """Called after every N steps with `--log-every N`.

        Args:
            record: The line of ``steps.jsonl`` for these steps, see `adv_train.observers.steps`.
        """

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """Called after an epoch is finished and saved.

        Args:
            record: Its line of ``metrics.jsonl``.
            seconds: Training time of the epoch in seconds, without validation.
        """

    def alarm(self, message: str) -> None:
        """Called with each warning of the observer `alarm`, which has also warned the user."""

    def finish(self, model: nn.Module) -> None:
        """Called after the last epoch is finished and saved.

        Args:
            model: The model after that epoch, with averaged weights if the run has them; in eval mode.
        """

    def close(self) -> None:
        """Called when training ends, also after an error or an interruption."""


OBSERVERS: Registry[Observer] = Registry("observer", "adv_train.observers")
