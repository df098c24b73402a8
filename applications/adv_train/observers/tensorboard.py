"""Curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adv_train.config import RunConfig
from adv_train.data import Dataset
from adv_train.observers.base import OBSERVERS, Observer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@OBSERVERS.register("tensorboard")
class TensorBoard(Observer):
    """Writes each figure of each epoch into RUN/tensorboard, for `tensorboard --logdir runs`."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Open the log; what an earlier process wrote of epochs that are done again is dropped."""
        from torch.utils.tensorboard import SummaryWriter  # Not at the top: it is an extra.

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """Write the figures of an epoch."""
        assert self._writer is not None
        for name, value in {**record, "train_seconds": seconds}.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()
