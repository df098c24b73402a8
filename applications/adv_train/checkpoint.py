"""Checkpoints: one file with the weights, the configuration and the state that resumes a run; loading runs no code."""

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
        config: Configuration of the run.
        model_arguments: Arguments for `adv_train.models.create` other than the name: image shape, classes, statistics.
        epoch: Number of finished epochs.
        model: State dict of the model, which training continues from; in a file for evaluation only, the averaged
            weights if there are any.
        optimizer: State of the optimiser; empty in a file for evaluation only.
        memory: State of the method; empty if the method has no state, or in a file for evaluation only.
        average: State dict of the averaged model; empty in a run without averaging, and in a file for evaluation only.
        history: The records of the finished epochs, as in ``metrics.jsonl``; empty in a file for evaluation only.
        best_epoch: Epoch that ``best.pt`` holds, counted from 1.
        best_score: Score that this epoch was chosen by; tuples are compared from the first entry on.
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
        """The weights to evaluate: the averaged weights if there are any, otherwise those of the model."""
        return self.average or self.model

    @property
    def averaged(self) -> str | None:
        """Name of the average in `judged`, such as `ema 0.9995`; None if the weights are not averaged."""
        return self.config.training.average_after(self.epoch)

    def for_evaluation(self) -> Checkpoint:
        """Return the checkpoint without the state that only training needs."""
        return replace(self, model=self.judged, optimizer={}, memory={}, average={}, history=())


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the file is replaced atomically.

    Raises:
        UserError: If it cannot be written; an existing file is then unchanged.
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
    # The checksums of an archive do not notice that a part is missing; this digest does.
    payload["digest"] = digest(payload)
    # Saved to memory first, because PyTorch's error for a full disk does not name the cause.
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    replace_file(path, buffer.getvalue())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU. Code in the file is never run.

    Raises:
        UserError: If the file is missing, damaged, not a checkpoint of adv-train, or has another format version.
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
        raise UserError(f"`{path}` is damaged: its content does not match its digest.")
    return found


def _arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names of a model's arguments, because a file must not pass arbitrary arguments to a user's factory."""
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
        # PyTorch does not verify the checksums that it writes, so a flipped bit would change a weight unnoticed.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a malicious archive may raise anything, and the message is the same for all
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
    except Exception as error:  # the archive is intact, but torch.save did not write it
        raise UserError(f"`{path}` is not a checkpoint of adv-train: PyTorch cannot read it.") from error


def _tensors(state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError("its model is not a mapping of tensors")
    return {str(name): value for name, value in state.items()}
