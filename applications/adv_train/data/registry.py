"""Load a data set by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from adv_train.data.augment import AUGMENTATIONS
from adv_train.data.dataset import Dataset
from adv_train.data.record import SplitRecord
from adv_train.errors import UserError, unknown
from adv_train.registry import Registry

#: Loaders by name. A loader takes the full name, the folder of downloaded data sets and the limit; see `load`.
DATASETS: Registry[Dataset] = Registry("data set", "adv_train.data")


def names() -> tuple[str, ...]:
    """Return every name that `load` accepts; ``PATH`` stands for a folder."""
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
        root: Folder of the downloaded data sets; a download creates it. An image folder whose path does not exist is
            searched for here, by its path and then by its last component.
        limit: Largest number of samples in the training split and in the validation split, at least 2: the first
            samples of each class, in proportion. The test split is always whole.
        device: Device to store the images on.
        path: Current path of an image folder; by default the path in its name.
        size: For image folders: resize the shorter side to so many pixels and crop the centre.
        augment: One of `AUGMENTATIONS`; by default the data set's own augmentation.
        skip_unreadable: For image folders: leave out files that cannot be read, with a warning that counts them.
        split: For image folders: the `record` of a data set loaded earlier. It restores the same splits, also if files
            were added since.

    Raises:
        UserError: If the name is unknown, an argument does not apply to it, the limit is too small, or the data are
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
