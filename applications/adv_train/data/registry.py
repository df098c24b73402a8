"""From a data set's name to its splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from adv_train.data.augment import AUGMENTATIONS
from adv_train.data.dataset import Dataset
from adv_train.data.record import SplitRecord
from adv_train.errors import UserError, unknown

_FOLDER = "imagefolder"


def names() -> tuple[str, ...]:
    """Every name that `load` knows; ``PATH`` stands for a folder."""
    return ("cifar10", "cifar100", "digits", f"{_FOLDER}:PATH")


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
    kind, _, written = name.partition(":")
    if kind == _FOLDER and not written:
        raise UserError(f"`{name}` does not say where the images are. Write `{_FOLDER}:PATH`.")
    if kind != _FOLDER and name not in names():
        raise unknown("data set", name, names())
    if augment is not None and augment not in AUGMENTATIONS:
        raise unknown("augmentation", augment, AUGMENTATIONS)
    root = Path(root).expanduser()
    if kind == _FOLDER:
        from adv_train.data import imagefolder

        folder = _find(Path(written).expanduser(), root) if path is None else Path(path).expanduser()
        dataset = imagefolder.load(name, folder, limit, size=size, skip_unreadable=skip_unreadable, split=split)
    else:
        given = {"path": path, "size": size, "skip_unreadable": skip_unreadable or None, "split": split}
        for argument, value in given.items():
            if value is not None:
                raise UserError(f"`{argument}` is for image folders, but the data set is `{name}`.")
        dataset = _read(name, root, limit)
    if augment is not None:
        dataset = replace(dataset, augment=AUGMENTATIONS[augment])
    return dataset.to(device)


# Each reader is imported when it is asked for: digits need not wait the seconds that torchvision takes.
def _read(name: str, root: Path, limit: int | None) -> Dataset:
    if name == "digits":
        from adv_train.data import digits

        return digits.load(limit)
    from adv_train.data import cifar

    return (cifar.CIFAR_10 if name == "cifar10" else cifar.CIFAR_100).load(root, limit)


def _find(written: Path, root: Path) -> Path:
    """Look for an image folder at its path, then for one that was moved into ``root`` or is ``root`` itself."""
    moved = [root / written.name, *([root] if root.name == written.name else [])]
    if not written.is_absolute():
        moved.insert(0, root / written)
        if written.exists() and moved[0].exists() and not written.samefile(moved[0]):
            raise UserError(
                f"There is an image folder `{written}` and another `{moved[0]}`. Give the path of one in full."
            )
    return next((folder for folder in [written, *moved] if folder.exists()), written)
