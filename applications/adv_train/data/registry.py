"""From a data set's name to its splits."""

from __future__ import annotations

from pathlib import Path

import torch

from adv_train.data.dataset import Dataset
from adv_train.errors import UserError, unknown

_FOLDER = "imagefolder"


def names() -> tuple[str, ...]:
    """Every name that `load` knows; ``PATH`` stands for a folder."""
    return ("cifar10", "cifar100", "digits", f"{_FOLDER}:PATH")


def load(name: str, *, root: Path | str, limit: int | None = None, device: torch.device | str = "cpu") -> Dataset:
    """Load a data set with its fixed splits.

    Args:
        name: One of `names`, such as ``digits`` or ``imagefolder:photos``.
        root: Folder of the downloaded data sets; made when something has to be downloaded into it.
        limit: Most samples in the training split and in the validation split, at least 2: the first of each
            class, in proportion. The test split is always whole.
        device: Where the images are to be.

    Raises:
        UserError: When the name is unknown, the limit too small, or the data are missing or unusable.
    """
    if limit is not None and limit < 2:
        raise UserError(f"The limit on training samples must be at least 2, but is {limit}.")
    kind, _, path = name.partition(":")
    if kind == _FOLDER and not path:
        raise UserError(f"`{name}` does not say where the images are. Write `{_FOLDER}:PATH`.")
    if kind != _FOLDER and name not in names():
        raise unknown("data set", name, names())
    return _read(name, Path(root).expanduser(), limit).to(device)


# Each reader is imported when it is asked for: digits need not wait the seconds that torchvision takes.
def _read(name: str, root: Path, limit: int | None) -> Dataset:
    if name == "digits":
        from adv_train.data import digits

        return digits.load(limit)
    if name.startswith("cifar"):
        from adv_train.data import cifar

        return (cifar.CIFAR_10 if name == "cifar10" else cifar.CIFAR_100).load(root, limit)
    from adv_train.data import imagefolder

    return imagefolder.load(name, Path(name.partition(":")[2]).expanduser(), limit)
