"""From a data set's name to its splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from adv_train.data.augment import AUGMENTATIONS
from adv_train.data.dataset import Dataset
from adv_train.data.record import SplitRecord
from adv_train.errors import UserError, unknown
from adv_train.registry import Registry

#: Each is called with the name in full, the folder of downloaded data sets and the limit, see `load`.
DATASETS: Registry[Dataset] = Registry("data set", "adv_train.data")


def names() -> tuple[str, ...]:
    """Every name that `load` knows; ``PATH`` stands for a folder."""
    return tuple(f"{name}:PATH" if _has_path(name) else name for name in DATASETS.names())


def load(
    name: str,
    *,
    root: Path | str,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    path: Path | str | None = None,
    size: int | None = None,
    augment: str | None = None,
    skip_unreadable: bool = False,
    split: SplitRecord | None = None,
) -> Dataset:
    """Load a data set with its fixed splits.

    Args:
        name: One of `names`, such as ``digits`` or ``imagefolder:photos``.
        root: Folder of the downloaded data sets; made when something has to be downloaded into it. An image folder
            that is not at its path is looked for here, by its path and then by its last name.
        limit: Most samples in the training split and in the validation split, at least 2: the first of each
            class, in proportion. The test split is always whole.
        device: Where the images are to be.
        path: Where an image folder is now, instead of the path in its name.
        size: For image folders: resize the shorter side to so many pixels and crop the centre.
        augment: One of `AUGMENTATIONS` in place of the data set's own.
        skip_unreadable: For image folders: leave out files that cannot be read, with a warning that counts them.
        split: For image folders: the `record` of a data set loaded before, to have the same splits again whatever
            files were added.

    Raises:
        UserError: When the name is unknown, an argument does not fit it, the limit is too small, or the data are
            missing or unusable.
    """
    if limit is not None and limit < 2:
        raise UserError(f"The limit on training samples must be at least 2, but is {limit}.")
    kind, _, place = name.partition(":")
    if kind not in DATASETS.names() or (place and not _has_path(kind)):
        raise unknown("data set", name, names())
    if _has_path(kind) and not place:
        raise UserError(f"`{name}` does not say where the images are. Write `{kind}:PATH`.")
    if augment is not None and augment not in AUGMENTATIONS:
        raise unknown("augmentation", augment, AUGMENTATIONS)
    given = {"path": path, "size": size, "skip_unreadable": skip_unreadable or None, "split": split}
    options = {option: value for option, value in given.items() if value is not None}
    dataset = DATASETS.create(kind, name, Path(root).expanduser(), limit, **options)
    if augment is not None:
        dataset = replace(dataset, augment=AUGMENTATIONS[augment])
    return dataset.to(device)


def _has_path(kind: str) -> bool:
    return "path" in DATASETS.options(kind)
