"""What a user sees on stderr while a model trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.observers.base import OBSERVERS, Observer


@OBSERVERS.register("progress")
class Progress(Observer):
    """A bar over the steps of a run, or a line an epoch where stderr is not a terminal.

    Args:
        shown: ``True`` for the bar, ``False`` for nothing, ``None`` for what suits the place that stderr goes to.
    """

    def __init__(self, shown: bool | None = None) -> None:
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._lines = shown is None and not self._shown
        self._title, self._epochs = "", 0
        self._bar: tqdm[Any] | None = None

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Say what is trained on, and count the epochs of an earlier process as done."""
        self._title, self._epochs = f"{config.method_name} on {config.data.name}", config.training.epochs
        if self._shown or self._lines:
            print(dataset.describe(), file=sys.stderr, flush=True)
        self._bar = tqdm(
            total=self._epochs * steps, desc=self._title, unit="step", file=sys.stderr, disable=not self._shown
        )
        # Left out of the speed.
        self._bar.initial = self._bar.n = done * steps
        self._bar.refresh()

    def step(self) -> None:
        """Count one step."""
        if self._bar is not None:
            self._bar.update()

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """Show the record of an epoch."""
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"epoch {record['epoch']}/{self._epochs}, loss {record['loss']:.3f}, "
                f"SA {record['val_sa']:.1%}, RA {record['val_ra']:.1%}"
            )
        if self._lines:
            print(
                f"{self._title}: epoch {record['epoch']}/{self._epochs}  loss {record['loss']:.3f}  "
                f"validation SA {record['val_sa']:.1%}  RA {record['val_ra']:.1%}  {seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
