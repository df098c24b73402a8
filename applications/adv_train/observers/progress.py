"""Show the progress of training on stderr, or below the cell of a notebook."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adv_train import bars
from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.observers.base import OBSERVERS, Observer

if TYPE_CHECKING:
    from tqdm import tqdm


@OBSERVERS.register("progress")
class Progress(Observer):
    """A progress bar over the steps of a run, with the remaining time; without a terminal, a line for each epoch.

    Args:
        shown: ``True`` shows the bar, ``False`` shows nothing, ``None`` shows the bar on a terminal and in a notebook,
            and lines elsewhere.
    """

    def __init__(self, shown: bool | None = None) -> None:
        self._shown = bars.are_shown(shown)
        self._lines = shown is None and not self._shown
        self._title, self._epochs, self._accuracies = "", 0, ""
        self._bar: tqdm[Any] | None = None

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Print the data set, and start the bar after the epochs that an earlier process finished."""
        self._title, self._epochs = f"{config.method_name} on {config.data.name}", config.training.epochs
        if self._shown or self._lines:
            print(dataset.describe(), file=sys.stderr, flush=True)
        self._bar = bars.progress_bar(shown=self._shown, total=self._epochs * steps, desc=self._title, unit="step")
        # Steps of an earlier process do not count for the speed.
        self._bar.initial = self._bar.n = done * steps
        self._bar.refresh()

    def step(self) -> None:
        """Count one step."""
        if self._bar is not None:
            self._bar.update()

    def part(self, record: Mapping[str, Any]) -> None:
        """Show the loss of the last steps beside the accuracies of the last epoch."""
        loss = "not finite" if record["loss"] is None else f"{record['loss']:.3f}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"epoch {record['epoch']}/{self._epochs}, loss {loss}{self._accuracies}")
        if self._lines:
            speed = f"{record['images_per_second']:.0f} images/s"
            print(
                f"{self._title}: epoch {record['epoch']}/{self._epochs}  step {record['step']}  loss {loss}  {speed}",
                file=sys.stderr,
                flush=True,
            )

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """Show the record of an epoch."""
        self._accuracies = f", SA {record['val_sa']:.1%}, RA {record['val_ra']:.1%}"
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"epoch {record['epoch']}/{self._epochs}, loss {record['loss']:.3f}{self._accuracies}"
            )
        if self._lines:
            print(
                f"{self._title}: epoch {record['epoch']}/{self._epochs}  loss {record['loss']:.3f}  "
                f"validation SA {record['val_sa']:.1%}  RA {record['val_ra']:.1%}  {seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
