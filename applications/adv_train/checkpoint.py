"""Checkpoints: one file with weights, configuration and all that a run needs to go on; read without running code."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from adv_train.config import RunConfig
from adv_train.digests import digest
from adv_train.errors import UserError
from adv_train.files import replace_file

FORMAT: Final = "adv_train checkpoint"
VERSION: Final = 2
_ARGUMENTS: Final = {"channels", "classes", "image_size", "mean", "std"}


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a whole number of epochs.

    Attributes:
        config: Of the run.
        model_arguments: What `adv_train.models.create` needs beside the model's name: image shape, classes, statistics.
        epoch: Epochs completed.
        model: The model's state, as the next step would move it; where the file is only for evaluation, what is judged.
        optimizer: The optimiser's state; empty where the file is only for evaluation.
        memory: What the method remembers; empty where it remembers nothing, or the file is only for evaluation.
        average: State dict of the averaged model; empty in a run without averaging, and in `best.pt`.
        history: The records of the epochs so far, as in ``metrics.jsonl``.
        best_epoch: Epoch that ``best.pt`` holds, counted from 1.
        best_score: What it was chosen by, largest first.
    """

    config: RunConfig
    model_arguments: Mapping[str, Any]
    epoch: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    average: Mapping[str, Tensor] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    best_epoch: int = 0
    best_score: tuple[float, ...] = ()

    @property
    def judged(self) -> Mapping[str, Tensor]:
        """The weights that stand for the run after this epoch: their average, where there is one."""
        return self.average or self.model

    @property
    def averaged(self) -> str | None:
        """Which average they are: `ema 0.9995`; None where they are the weights themselves."""
        return self.config.training.average_after(self.epoch)

    def for_evaluation(self) -> Checkpoint:
        """Give what is left without all that only training needs."""
        return replace(self, model=self.judged, optimizer={}, memory={}, average={}, history=())


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in one piece.

    Raises:
        UserError: When it cannot be written; the previous file is then unchanged.
    """
    payload = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.to_mapping(),
        "model_arguments": dict(checkpoint.model_arguments),
        "epoch": checkpoint.epoch,
        "model": dict(checkpoint.model),
        "optimizer": dict(checkpoint.optimizer),
        "memory": dict(checkpoint.memory),
        "average": dict(checkpoint.average),
        "history": [dict(record) for record in checkpoint.history],
        "best_epoch": checkpoint.best_epoch,
        "best_score": list(checkpoint.best_score),
    }
    # Archives can lose a part and still pass their own checksums.
    payload["digest"] = digest(payload)
    # Through memory: PyTorch's own file writer reports a full disk as an error that does not say so.
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    replace_file(path, buffer.getvalue())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Nothing in the file is run, whatever it holds.

    Raises:
        UserError: When there is no such file, or it is damaged, foreign, or written by a newer version.
    """
    payload = _read(path)
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise UserError(f"`{path}` is a PyTorch file, but not a checkpoint of adv-train.")
    if payload.get("version") != VERSION:
        raise UserError(
            f"`{path}` has checkpoint format {payload.get('version')!r}, but this adv-train reads format {VERSION}: "
            "use the version that wrote it."
        )
    try:
        found = Checkpoint(
            config=RunConfig.of(payload["config"]),
            model_arguments=_arguments(payload["model_arguments"]),
            epoch=int(payload["epoch"]),
            model=_tensors(payload["model"]),
            optimizer=dict(payload["optimizer"]),
            memory=_tensors(payload.get("memory", {})),
            average=_tensors(payload.get("average", {})),
            history=tuple(dict(record) for record in payload["history"]),
            best_epoch=int(payload["best_epoch"]),
            best_score=tuple(float(part) for part in payload["best_score"]),
        )
        written = payload.pop("digest")
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"`{path}` is not a complete checkpoint of adv-train ({error}).") from error
    if written != digest(payload):
        raise UserError(f"`{path}` is damaged: it does not hold what was saved.")
    return found


def _arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model; others than those of the data would reach a factory of the user's own."""
    if set(found) - _ARGUMENTS:
        raise ValueError(f"unknown model arguments {', '.join(sorted(set(found) - _ARGUMENTS))}")
    return dict(found)


def _read(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint `{path}`: train with `adv-train fit --out {path.parent}`.") from None
    except OSError as error:
        raise UserError(f"Cannot read the checkpoint `{path}`: {error.strerror}.") from error
    try:
        # PyTorch does not compare the checksums that it writes; without this a flipped bit is a changed weight.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a hostile archive may fail in any way; each means the same
        raise UserError(f"`{path}` is not a checkpoint of adv-train, or is damaged (not an archive).") from error
    if damaged:
        raise UserError(f"`{path}` is damaged: the checksum of its part `{damaged}` is wrong.")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"`{path}` is not a checkpoint of adv-train: it holds objects other than tensors and plain values, "
            "which could run code when loaded. Nothing was loaded."
        ) from error
    except Exception as error:  # the archive is sound, but its content is not what torch.save writes
        raise UserError(f"`{path}` is not a checkpoint of adv-train: PyTorch cannot read it.") from error


def _tensors(state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError("its model is not a mapping of tensors")
    return {str(name): value for name, value in state.items()}
