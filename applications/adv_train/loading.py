"""Load the model, the checkpoint and the data of a run."""

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
        config: Configuration of the run.
        split: The splits of an image folder that the run folder has recorded; None if there are none.
        device: Device to store the images on.
        root: Folder of the data sets; by default the folder in `config`.
        path: Current path of an image folder; by default the path in `config`.

    Raises:
        UserError: If the data are missing or unusable, or differ from the record.
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
        UserError: If the file is missing, is not a checkpoint, or belongs to another run.
    """
    if which not in WHICH:
        raise unknown("checkpoint", which, WHICH)
    config = run.config()
    path = run.best if which == "best" else run.last
    saved = read_checkpoint(path)
    differences = config.differences(saved.config, of_checkpoint=True)
    if differences:
        raise UserError(f"`{path}` and the config.yaml beside it are of different runs: {', '.join(differences)}.")
    return saved


def build_model(saved: Checkpoint) -> nn.Module:
    """Build the model of a checkpoint, on the CPU and in eval mode.

    Raises:
        UserError: If the weights do not fit the model that the checkpoint names, or the model is a factory that is not
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
        run: A run folder, or a checkpoint file of a run in any folder.
        checkpoint: ``"best"`` on the validation split, or ``"last"``; ignored if `run` is a file.
        device: Device for the model.

    Returns:
        A module in eval mode, from images ``(batch, channels, height, width)`` in [0, 1] to logits
        ``(batch, classes)``. It includes the normalisation.

    Raises:
        UserError: If the folder holds no run, or the checkpoint is missing, damaged or belongs to another run, or names
            a factory that is not trusted (see `adv_train.trust`).
    """
    return build_model(open_checkpoint(Path(run), checkpoint)).to(device)


def open_checkpoint(path: Path, which: str = "best") -> Checkpoint:
    """Read a checkpoint of a run folder, or a checkpoint file.

    Args:
        path: A run folder, or a checkpoint file in any folder.
        which: As in `load_checkpoint`; ignored if `path` is a file.

    Raises:
        UserError: If the folder holds no run, or the checkpoint is missing, damaged or belongs to another run.
    """
    # A path that ends in .pt is a file even if it does not exist; the error then says that it is missing.
    is_file = path.is_file() or (path.suffix == ".pt" and not path.is_dir())
    return read_checkpoint(path) if is_file else load_checkpoint(RunFolder(path), which)


def load_source(run: str, dataset: data.Dataset, device: torch.device) -> nn.Module:
    """Load the source model of a transfer attack.

    Args:
        run: A run folder (its best checkpoint is loaded) or a checkpoint file of a run.
        dataset: The attacked data set.
        device: Device for the model.

    Raises:
        UserError: If the model cannot be loaded, or was trained on images of another shape or with other classes. The
            names of its classes are known if it was trained on an image folder; otherwise their number is compared.
    """
    saved, arguments = open_checkpoint(Path(run)), dataset.model_arguments()
    for key in ("classes", "channels", "image_size"):
        if saved.model_arguments[key] != arguments[key]:
            raise UserError(
                f"The source `{run}` was trained on {saved.model_arguments[key]} {key.replace('_', ' ')}, but "
                f"`{dataset.name}` has {arguments[key]}."
            )
    for label, (theirs, ours) in enumerate(zip(_class_names(Path(run), saved), dataset.class_names, strict=False)):
        if theirs != ours:
            raise UserError(
                f"The source `{run}` was trained on other classes, or on the same in another order: label {label} is "
                f"`{theirs}` there, but `{ours}` in `{dataset.name}`. Give a source with the classes of the attacked "
                "images."
            )
    return build_model(saved).to(device)


def _class_names(path: Path, saved: Checkpoint) -> tuple[str, ...]:
    """Return the names of the classes of a run, in the order of the labels; empty if they are not known."""
    folder = RunFolder(path if path.is_dir() else path.parent)
    # The folder of a checkpoint file may hold another run.
    if not folder.config_file.is_file() or folder.config().differences(saved.config, of_checkpoint=True):
        return ()
    split = folder.split()
    return () if split is None else data.SplitRecord.from_mapping(split).classes
