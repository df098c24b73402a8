"""From a run folder back to the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adv_train import data, models
from adv_train.checkpoint import Checkpoint
from adv_train.checkpoint import load as read_checkpoint
from adv_train.config import RunConfig
from adv_train.errors import UserError, unknown
from adv_train.records import RunFolder

WHICH = ("best", "last")


def load_data(
    config: RunConfig,
    split: Mapping[str, Any] | None,
    *,
    device: torch.device | str = "cpu",
    root: str | None = None,
    path: str | None = None,
) -> data.Dataset:
    """Load the data of a run.

    Args:
        config: Of the run.
        split: What the run folder has recorded of the splits of an image folder.
        device: Where the images are to be.
        root: Folder of the data sets, where that is another one now.
        path: Where an image folder is now.

    Raises:
        UserError: When the data are missing, unusable, or no longer those that were recorded.
    """
    return data.load(
        config.data.name,
        root=root or config.data.root,
        limit=config.data.limit,
        device=device,
        path=path,
        size=config.data.size,
        augment=config.data.augment,
        skip_unreadable=config.data.skip_unreadable,
        split=None if split is None else data.SplitRecord.from_mapping(split),
    )


def load_checkpoint(run: RunFolder, which: str = "best") -> Checkpoint:
    """Read a checkpoint of a run.

    Args:
        run: The run folder.
        which: ``"best"`` on the validation split, or ``"last"``.

    Raises:
        UserError: When there is none, or it is not a checkpoint, or is that of another run.
    """
    if which not in WHICH:
        raise unknown("checkpoint", which, WHICH)
    config = run.config()
    path = run.best if which == "best" else run.last
    saved = read_checkpoint(path)
    differences = config.differences(saved.config)
    if differences:
        raise UserError(f"`{path}` belongs to another run than the config.yaml beside it: {', '.join(differences)}.")
    return saved


def build_model(saved: Checkpoint) -> nn.Module:
    """Build the model of a checkpoint, on the CPU and in eval mode.

    Raises:
        UserError: When the weights do not fit the model that the checkpoint names, or that is a factory that is not
            trusted (see `adv_train.trust`).
    """
    config = saved.config
    models.require_trusted(config.model.name, "The checkpoint")
    try:
        model = models.create(config.model.name, **saved.model_arguments, **config.model.options, seed=0)
        model.load_state_dict(dict(saved.judged))
        if config.compute.channels_last:
            model = model.to(memory_format=torch.channels_last)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"The weights in the checkpoint do not fit the model `{config.model.name}`.") from error
    return model.eval()


def load_model(run: Path | str, *, checkpoint: str = "best", device: torch.device | str = "cpu") -> nn.Module:
    """Load a trained model.

    Args:
        run: The run folder, or a checkpoint file of a run, wherever it lies.
        checkpoint: ``"best"`` on the validation split, or ``"last"``; a file says it itself.
        device: Where the model is to be.

    Returns:
        A module in eval mode, from images ``(batch, channels, height, width)`` in [0, 1] to logits
        ``(batch, classes)``, with the normalisation inside.

    Raises:
        UserError: When the folder holds no run, or its checkpoint is missing, damaged or foreign, or names a factory
            that is not trusted (see `adv_train.trust`).
    """
    return build_model(open_checkpoint(Path(run), checkpoint)).to(device)


def open_checkpoint(path: Path, which: str = "best") -> Checkpoint:
    """Read a checkpoint of a run folder, or a checkpoint file.

    Args:
        path: The run folder, or the file, wherever it lies.
        which: As in `load_checkpoint`; a file says it itself.

    Raises:
        UserError: When the folder holds no run, or its checkpoint is missing, damaged or foreign.
    """
    # A name such as run/best.pt is a file's also where the file is missing; the error then says so.
    is_file = path.is_file() or (path.suffix == ".pt" and not path.is_dir())
    return read_checkpoint(path) if is_file else load_checkpoint(RunFolder(path), which)


def load_source(run: str, arguments: Mapping[str, Any], data_name: str, device: torch.device) -> nn.Module:
    """Load the model of a run that another model is attacked from.

    Args:
        run: A run folder (its best checkpoint) or a checkpoint file of a run.
        arguments: Of a model for the images that are attacked.
        data_name: What these images are called, for the error.
        device: Where the model is to be.

    Raises:
        UserError: When it cannot be loaded, or was trained on images of another shape or with other classes.
    """
    saved = open_checkpoint(Path(run))
    for key in ("classes", "channels", "image_size"):
        if saved.model_arguments[key] != arguments[key]:
            raise UserError(
                f"The source `{run}` was trained on {saved.model_arguments[key]} {key.replace('_', ' ')}, but "
                f"`{data_name}` has {arguments[key]}."
            )
    return build_model(saved).to(device)
