"""Write curves, settings, warnings and images for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adv_train import attacks, data
from adv_train.config import RunConfig, flat, to_yaml
from adv_train.data import Dataset
from adv_train.errors import UserError
from adv_train.observers.base import OBSERVERS, Observer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: Metrics in TensorBoard's table of hyperparameters.
_JUDGED = ("loss", "val_sa", "val_ra")
_PICTURES = 16


@OBSERVERS.register("tensorboard")
class TensorBoard(Observer):
    """Writes metrics, settings, warnings and attacked images to RUN/tensorboard, for `tensorboard --logdir runs`."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._parts: SummaryWriter | None = None

    def start(self, config: RunConfig, dataset: Dataset, folder: Path, *, steps: int, done: int) -> None:
        """Open the log, and drop the entries of an earlier process for epochs that will be repeated.

        Raises:
            UserError: If TensorBoard is not installed.
        """
        self._config, self._dataset, self._folder = config, dataset, folder / "tensorboard"
        self._epoch, self._steps = done, steps
        self._writer = _writer(self._folder, done + 1)
        self._writer.add_text("config", _code(to_yaml(config)), done)
        self._settings = _settings(self._writer, config)

    def part(self, record: Mapping[str, Any]) -> None:
        """Write the metrics of the last steps to a separate log, whose axis counts steps instead of epochs."""
        if self._parts is None:
            self._parts = _writer(self._folder / "steps", self._epoch * self._steps + 1)
        for name in ("loss", "lr", "images_per_second"):
            if record[name] is not None:
                self._parts.add_scalar(f"steps/{name}", record[name], record["step"])

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        """Write the metrics of an epoch."""
        assert self._writer is not None
        self._epoch = record["epoch"]
        for name, value in {**record, "train_seconds": seconds}.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def alarm(self, message: str) -> None:
        """Write a warning."""
        assert self._writer is not None
        self._writer.add_text("alarm", message, self._epoch)

    def finish(self, model: nn.Module) -> None:
        """Write some validation images: clean, attacked, and their difference, which is scaled to be visible."""
        assert self._writer is not None
        x, y = next(iter(data.ordered_batches(self._dataset.validation, _PICTURES)))
        threat, steps = self._config.threat, self._config.training.validation_steps
        generator = torch.Generator(x.device).manual_seed(0)
        _, changed = attacks.pgd(
            model, x, y, eps=threat.eps, norm=threat.norm, steps=steps, restarts=1, generator=generator
        )
        change = changed - x
        seen = 0.5 + 0.5 * change / change.abs().amax().clamp(min=1e-12)
        for name, shown in {"clean": x, "attacked": changed, "change": seen}.items():
            self._writer.add_images(f"images/{name}", shown, self._epoch)

    def close(self) -> None:
        """Close the log."""
        if self._writer is not None:
            _add(self._writer, self._settings)
            self._writer.close()
        if self._parts is not None:
            self._parts.close()


def _writer(folder: Path, purge_step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter  # Not at the top: it is an optional dependency.
    except ModuleNotFoundError as error:
        raise UserError(
            "The observer tensorboard needs the package tensorboard: pip install 'torch-blo[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=purge_step)


def _settings(writer: SummaryWriter, config: RunConfig) -> Any:
    """Write the settings for the table of hyperparameters; return the summary that ends that entry."""
    from torch.utils.tensorboard.summary import hparams

    plain = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in _chosen(config)}
    # Not `add_hparams`, which creates a separate run. The table shows the last values of the curves in `_JUDGED`.
    experiment, start, end = hparams(plain, dict.fromkeys(_JUDGED, 0.0))
    _add(writer, experiment)
    _add(writer, start)
    return end


def _add(writer: SummaryWriter, summary: Any) -> None:
    file: Any = writer.file_writer  # never None here: it is open as long as the writer
    file.add_summary(summary)


def _chosen(config: RunConfig) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in flat(config.to_mapping()).items() if value is not None]


def _code(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())
