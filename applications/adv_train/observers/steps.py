"""What is logged within an epoch: a line of JSON for so many steps."""

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
from adv_train.observers.base import Observer


class Steps(Observer):
    """Writes what `--log-every N` measures of each N steps into RUN/steps.jsonl: loss, lr, images a second."""

    def __init__(self) -> None:
        self._file: TextIOWrapper | None = None

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Open the file; what an earlier process wrote of epochs that are done again is dropped."""
        path = folder / "steps.jsonl"
        kept = [line for line in _lines(path) if line["epoch"] <= done]
        replace_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def part(self, record: Mapping[str, Any]) -> None:
        """Write a line, so that it can be read at once."""
        assert self._file is not None
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class StepClock:
    """Measures so many steps at a time; the host waits for the device once each time, and not in the steps between.

    Args:
        every: So many steps make a part.
        first: Steps that were done before.
    """

    def __init__(self, every: int, first: int = 0) -> None:
        self._every, self._step = every, first
        self._since, self._images, self._losses = time.perf_counter(), 0, 0.0

    def start_epoch(self) -> None:
        """Leave out the time since the last step, in which the model was validated and saved."""
        self._since, self._images, self._losses = time.perf_counter(), 0, 0.0

    def step(self, losses: Tensor, images: int) -> dict[str, Any] | None:
        """Count a step.

        Args:
            losses: Sum over all images of the epoch so far, on the device.
            images: Of this step.

        Returns:
            ``step`` (counted from 1 through the run), ``loss`` (mean over the images since the last part of this
            epoch; None where it is not finite) and ``images_per_second``, after a whole part; None otherwise.
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


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines that are whole; the last one of a killed process may not be."""
    if not path.exists():
        return []
    found = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in found if line.endswith("\n")]
