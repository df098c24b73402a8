"""What looks on while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.registry import Registry


class Observer:
    """Told of everything that happens in a run; what it does changes nothing in it.

    Subclasses stand in files of their own in this package, take no argument that has no default, and are registered
    with `OBSERVERS.register`.
    """

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Training begins, or goes on.

        Args:
            config: Of the run.
            dataset: What it trains on.
            folder: The run folder.
            steps: Of one epoch.
            done: Epochs that an earlier process has done.
        """

    def step(self) -> None:
        """A step is done."""

    def part(self, record: Mapping[str, Any]) -> None:
        """As many steps as `--log-every` says are done.

        Args:
            record: Their line of ``steps.jsonl``, see `adv_train.observers.steps`.
        """

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """An epoch is done and saved.

        Args:
            record: Its line of ``metrics.jsonl``.
            seconds: Training took so long, validation left out.
        """

    def alarm(self, message: str) -> None:
        """Training does not get anywhere, or loses what it had; the user has been warned."""

    def finish(self, model: nn.Module) -> None:
        """The last epoch is done and saved.

        Args:
            model: As it is after that epoch, or its average where there is one; in eval mode.
        """

    def close(self) -> None:
        """Training ends, in whatever way."""


OBSERVERS: Registry[Observer] = Registry("observer", "adv_train.observers")
