"""Images sorted into folders by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from adv_train.data.augment import Augment
from adv_train.data.dataset import Dataset
from adv_train.data.read_images import read_images
from adv_train.data.split import Split
from adv_train.data.statistics import channel_statistics
from adv_train.data.stratified import limited, stratified_holdout
from adv_train.errors import UserError

_HELD_OUT = 0.1
_LAYOUT = "`<class>/` folders of images, or `train/<class>/` and `test/<class>/`"


def load(name: str, folder: Path, limit: int | None) -> Dataset:
    """Load square colour images of one size from a folder.

    With ``train/<class>/`` and ``test/<class>/`` the validation split is a tenth of ``train``; with
    ``<class>/`` alone a tenth of the images are held out to test, and a tenth of the rest for validation.
    Every class keeps its share, and the same files always give the same splits. Folders inside a class folder
    are searched too.

    Args:
        name: What the data set is called.
        folder: Where the images are.
        limit: Most samples in the training split, and in the validation split; others are not read.

    Raises:
        UserError: When the folder is missing, laid out otherwise or without images, when a class has too few
            images to be in every split, or when an image is unreadable or of another size or shape than the
            rest.
    """
    if not folder.is_dir():
        raise UserError(f"Image folder `{folder}` does not exist or is not a folder. It should hold {_LAYOUT}.")
    official_test = (folder / "train").is_dir()
    top = folder / "train" if official_test else folder
    classes = _class_names(top)
    # One sample of each class for every split that is cut from these files.
    files, labels = _list(top, classes, at_least=2 if official_test else 3)
    train = torch.arange(len(files))
    if official_test:
        test_files = _official_test(folder, classes)
    else:
        train, test = _hold_out(train, labels)
        test_files = [files[i] for i in test], labels[test]
    train, validation = _hold_out(train, labels)
    train, validation = (limited(part, labels, limit) for part in (train, validation))

    chosen = [files[i] for part in (train, validation) for i in part]
    # Read together, so that one size holds for all and one bar shows.
    images = read_images([*chosen, *test_files[0]])
    train_images, validation_images, test_images = images.split([len(train), len(validation), len(test_files[0])])
    mean, std = channel_statistics(train_images)
    return Dataset(
        name=name,
        train=Split(train_images, labels[train]),
        validation=Split(validation_images, labels[validation]),
        test=Split(test_images, test_files[1]),
        class_names=tuple(classes),
        mean=mean,
        std=std,
        augment=Augment(),
    )


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        found = f"only `{names[0]}/`" if names else "no folder"
        raise UserError(
            f"`{folder}` needs a folder for each of at least 2 classes, but holds {found}. Expected: {_LAYOUT}."
        )
    return names


def _list(folder: Path, classes: Sequence[str], at_least: int) -> tuple[list[Path], Tensor]:
    """List the image files class by class, sorted, with the label of each."""
    number = {name: label for label, name in enumerate(classes)}
    found = make_dataset(str(folder), number, extensions=IMG_EXTENSIONS, allow_empty=True)
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    for name, count in zip(classes, torch.bincount(labels, minlength=len(classes)).tolist(), strict=True):
        if count < at_least:
            raise UserError(
                f"Class folder `{folder / name}` needs at least {at_least} images for the splits, but "
                f"holds {count} ({', '.join(IMG_EXTENSIONS)} are recognised)."
            )
    return [Path(file) for file, _ in found], labels


def _official_test(folder: Path, classes: Sequence[str]) -> tuple[list[Path], Tensor]:
    test = folder / "test"
    if not test.is_dir():
        raise UserError(
            f"`{folder}` has `train/` but no `test/`. Add it, or give `{folder / 'train'}` to have it split."
        )
    differing = sorted(set(classes) ^ set(_class_names(test)))
    if differing:
        raise UserError(
            f"`train/` and `test/` in `{folder}` need the same class folders, but `{differing[0]}/` "
            "is in one of them only."
        )
    return _list(test, classes, at_least=1)


def _hold_out(indices: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    labels = labels[indices]
    # With as many samples as classes, or more, no class is missing from what is held out.
    size = max(round(_HELD_OUT * len(labels)), len(labels.unique()))
    kept, held_out = stratified_holdout(labels, size)
    return indices[kept], indices[held_out]
