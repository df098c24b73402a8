"""Log within an epoch: one line of JSON for every N steps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from torch import Tensor

from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.files import replace_file
from adv_train.json_lines import read_lines, to_lines
from adv_train.observers.base import Observer


class Steps(Observer):
    """Writes loss, learning rate and images a second of every N steps to RUN/steps.jsonl, with `--log-every N`."""

    def __init__(self) -> None:
        self._file: TextIOWrapper | None = None

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Open the file, and drop the lines of an earlier process for epochs that will be repeated."""
        path = folder / "steps.jsonl"
        kept = [line for line in read_lines(path, {"epoch": int}, whole=False) if line["epoch"] <= done]
        replace_file(path, to_lines(kept))
        self._file = path.open("a", encoding="utf-8")

    def part(self, record: Mapping[str, Any]) -> None:
        """Write a line and flush it."""
        assert self._file is not None
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class StepClock:
    """Measures loss and speed of every N steps; the host waits for the device only once in N steps.

    Args:
        every: The number N.
        first: Number of steps that an earlier process finished.
    """

    def __init__(self, every: int, first: int = 0) -> None:
        self._every, self._step = every, first
        self._since, self._images, self._losses = time.perf_counter(), 0, 0.0

    def start_epoch(self) -> None:
        """Restart the clock, so that the time for validation and saving does not count."""
        self._since, self._images, self._losses = time.perf_counter(), 0, 0.0

    def step(self, losses: Tensor, images: int) -> dict[str, Any] | None:
        """Count a step.

        Args:
            losses: Sum of the losses over all images of the epoch so far, on the device.
            images: Number of images in this step.

        Returns:
            After every N steps ``step`` (from 1 through the run), ``loss`` (mean over the images since the last record
            of this epoch; None if it is not finite) and ``images_per_second``; otherwise None.
        """
        self._step += 1
        self._images += images
        if self._step % self._every:
            return None
        total, now = float(losses), time.perf_counter()
        loss = (total - self._losses) / self._images
        speed = self._images / (now - self._since)
        self._since, self._images, self._losses = now, 0, total
        return {"step": self._step, "loss": loss if math.isfinite(loss) else None, "images_per_second": speed}
