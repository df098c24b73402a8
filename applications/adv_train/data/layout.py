"""Find out which folders of an image folder are splits and which are classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adv_train.data.split import SplitName
from adv_train.errors import UserError

_SPLIT_FOLDERS: Final[Mapping[SplitName, str]] = {
    "train": "train|training",
    "validation": "val|valid|validation|dev",
    "test": "test|testing",
}
_SUFFIX = r"([ _-]?(set|split|data|images))?"
_EXPECTED = "`<class>/` folders of images, or `train/<class>/` and `test/<class>/` (and `val/<class>/`)"


@dataclass(frozen=True)
class Layout:
    """The layout of an image folder.

    Attributes:
        classes: Names of the class folders, in the order of the labels.
        folders: The folder of each split that has one; ``{"train": folder}`` if the image folder itself holds the class
            folders.
    """

    classes: tuple[str, ...]
    folders: Mapping[SplitName, Path]


def find_layout(folder: Path) -> Layout:
    """Tell splits from classes by the names of the folders, in any capitalisation.

    ``train`` or ``training``, ``val``, ``valid``, ``validation`` or ``dev``, and ``test`` or ``testing`` are always
    splits, also with a suffix such as ``_set`` or ``_data``.

    Raises:
        UserError: If the folder is missing, or its layout is ambiguous or not supported.
    """
    if not folder.is_dir():
        raise UserError(f"Image folder `{folder}` does not exist or is not a folder. It should hold {_EXPECTED}.")
    folders: dict[SplitName, Path] = {}
    others = []
    for name in _folder_names(folder):
        split = _split_named(name)
        if split is None:
            others.append(name)
        elif split in folders:
            raise UserError(
                f"`{folder}` has `{folders[split].name}/` and `{name}/`, both for the {split} split. "
                "Rename or move one."
            )
        else:
            folders[split] = folder / name
    if not folders:
        return Layout(_class_names(folder), {"train": folder})
    _check_splits(folder, folders, others)
    classes = _class_names(folders["train"])
    for path in folders.values():
        differing = sorted(set(classes) ^ set(_class_names(path)))
        if differing:
            raise UserError(
                f"`{folders['train'].name}/` and `{path.name}/` in `{folder}` need the same class folders, but "
                f"`{differing[0]}/` is in one of them only."
            )
    return Layout(classes, folders)


def list_images(folder: Path, classes: Sequence[str], *, at_least: int) -> tuple[list[Path], list[int]]:
    """List the image files in the class folders and below them, class by class and sorted, with the label of each.

    Hidden files and files in hidden folders, such as previews, are left out.

    Raises:
        UserError: If a class has fewer than ``at_least`` images.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # Not at the top: importing it takes seconds.

    number = {name: label for label, name in enumerate(classes)}
    found = make_dataset(str(folder), number, extensions=IMG_EXTENSIONS, allow_empty=True)
    pairs = [(Path(file), label) for file, label in found if not _is_hidden(Path(file), folder)]
    labels = [label for _, label in pairs]
    counts = Counter(labels)
    for label, name in enumerate(classes):
        if (count := counts[label]) < at_least:
            raise UserError(
                f"Class folder `{folder / name}` needs at least {at_least} images for the splits, but "
                f"holds {count} (recognised suffixes: {', '.join(IMG_EXTENSIONS)})."
            )
    return [file for file, _ in pairs], labels


def images_below(folder: Path) -> list[Path]:
    """List every image file below a folder, except hidden ones and those in hidden folders."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return [
        path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and not _is_hidden(path, folder)
    ]


def _is_hidden(file: Path, folder: Path) -> bool:
    """Return whether the name of a file, or of a folder between it and `folder`, begins with a dot."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _split_named(name: str) -> SplitName | None:
    for split, names in _SPLIT_FOLDERS.items():
        if re.fullmatch(f"({names}){_SUFFIX}", name, flags=re.IGNORECASE):
            return split
    return None


def _check_splits(folder: Path, folders: Mapping[SplitName, Path], others: Sequence[str]) -> None:
    found = " and ".join(f"`{path.name}/`" for path in folders.values())
    for name in others:
        if images_below(folder / name):
            raise UserError(
                f"`{folder}` has {found} and, beside them, images in `{name}/`: it is unclear whether the folders are "
                f"splits or classes. Move `{name}/` elsewhere, or rename the classes that have names of splits."
            )
    if "train" not in folders:
        raise UserError(f"`{folder}` has {found} but no `train/`. Add it; a class may not have the name of a split.")
    if len(folders) == 1:
        raise UserError(
            f"`{folder}` has {found} but no `test/`. Add it, or give `{folders['train']}` as the image folder."
        )


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _folder_names(folder)
    if len(names) < 2:
        found = f"only `{names[0]}/`" if names else "no folder"
        raise UserError(
            f"`{folder}` needs a folder for each of at least 2 classes, but holds {found}. Expected: {_EXPECTED}."
        )
    if all(_split_named(name) for name in names):
        raise UserError(f"`{folder}` should hold a folder for each class, but holds splits, such as `{names[0]}/`.")
    for name in names:
        for inner in _folder_names(folder / name):
            if _split_named(inner):
                raise UserError(
                    f"Class folder `{folder / name}` holds a split, `{inner}/`. Split folders contain class folders: "
                    f"`{inner}/{name}/`, not `{name}/{inner}/`; a folder in a class folder needs another name."
                )
    return tuple(names)


def _folder_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
