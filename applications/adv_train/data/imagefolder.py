"""Image folders: images sorted into one folder for each class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adv_train.data.augment import Augment
from adv_train.data.content_split import cut
from adv_train.data.dataset import Dataset
from adv_train.data.large import only_rows
from adv_train.data.layout import find_layout, images_below, list_images
from adv_train.data.read_images import named, read_images
from adv_train.data.record import Entry, SplitRecord, digests
from adv_train.data.registry import DATASETS
from adv_train.data.split import SPLITS, Split, SplitName
from adv_train.data.statistics import channel_statistics
from adv_train.data.stratified import limited
from adv_train.digests import digest
from adv_train.errors import UserError

_TENTH = 0.1
_LAST = "f" * 32


class _Sample(NamedTuple):
    file: Path
    label: int
    digest: str


_Splits = Mapping[SplitName, Sequence[_Sample]]


@DATASETS.register("imagefolder")
def load(
    name: str,
    root: Path,
    limit: int | None,
    *,
    path: Path | None = None,
    size: int | None = None,
    skip_unreadable: bool = False,
    split: SplitRecord | None = None,
) -> Dataset:
    """Your own images, one folder for each class, optionally inside train/, val/ and test/.

    `layout.find_layout` tells split folders from class folders. If there is no test folder, about a tenth of the
    training images becomes the test split; if there is no validation folder, about a tenth of the remaining ones
    becomes the validation split. The content of a file decides its split (see `content_split.cut`): adding files never
    moves an image from training to validation or test, nor from validation to test. Every split has every class.

    Args:
        name: Name of the data set: `imagefolder:` and its path.
        root: Folder to search if the path does not exist: for the path, and then for its last component.
        limit: Largest number of samples in the training split and in the validation split; others are not read.
        path: Current path of the images; by default the path in the name.
        size: Resize the shorter side of each image to so many pixels and crop the centre.
        skip_unreadable: Leave out files that cannot be read, with a warning that counts them.
        split: Recorded splits to use instead of new ones. Files that are not in the record are left out, with a
            warning that counts them.

    Raises:
        UserError: If the folder is missing, has another layout or no images; if a class has too few images to be in
            every split; if images are unreadable or differ in size or shape; or if the folder no longer holds the
            recorded files.
    """
    if size is not None and size < 1:
        raise UserError(f"`size` must be at least 1 pixel, but is {size}.")
    written = Path(name.partition(":")[2]).expanduser()
    folder = _find(written, root) if path is None else path.expanduser()
    splits: _Splits
    if split is None:
        classes, splits = _splits_of_the_folder(folder)
    else:
        classes, splits = split.classes, _splits_of_the_record(folder, split)
    beyond = sum(map(len, splits.values()))
    splits = {
        "train": _first_of_each_class(splits["train"], limit),
        "validation": _first_of_each_class(splits["validation"], limit),
        "test": splits["test"],
    }
    beyond -= sum(map(len, splits.values()))
    # All splits are read together, so that all images must have one size, and one progress bar covers them.
    files = [sample.file for part in SPLITS for sample in splits[part]]
    skipped: dict[Path, str] = {}
    store = _store(root, [sample.digest for part in SPLITS for sample in splits[part]], size)
    images = read_images(files, size=size, skipped=skipped if skip_unreadable else None, store=store)
    if skipped:
        images = only_rows(images, torch.tensor([file not in skipped for file in files]))
        splits = _without(splits, skipped, classes)
    parts = images.split([len(splits[part]) for part in SPLITS])
    entries = {part: tuple(_entry(sample, folder) for sample in splits[part]) for part in SPLITS}
    made = {part: _split(pixels, entries[part]) for part, pixels in zip(SPLITS, parts, strict=True)}
    mean, std = channel_statistics(made["train"].images)
    return Dataset(
        name=name,
        train=made["train"],
        validation=made["validation"],
        test=made["test"],
        class_names=classes,
        mean=mean,
        std=std,
        augment=Augment(),
        record=SplitRecord(
            classes,
            entries["train"],
            entries["validation"],
            entries["test"],
            beyond if split is None else split.beyond,
        ),
    )


def _find(written: Path, root: Path) -> Path:
    """Search for an image folder at its path, then below ``root``, then accept ``root`` itself if it has its name."""
    moved = [root / written.name, *([root] if root.name == written.name else [])]
    if not written.is_absolute():
        moved.insert(0, root / written)
        if written.exists() and moved[0].exists() and not written.samefile(moved[0]):
            raise UserError(f"`{written}` and `{moved[0]}` are different image folders. Give the absolute path of one.")
    return next((folder for folder in [written, *moved] if folder.exists()), written)


def _store(root: Path, contents: Sequence[str], size: int | None) -> Path:
    """Return the path for the decoded images of files with these digests, in the folder of downloaded data sets."""
    return root / "decoded" / f"{digest([contents, size])[:32]}.uint8"


def _splits_of_the_folder(folder: Path) -> tuple[tuple[str, ...], _Splits]:
    layout = find_layout(folder)
    own = {split: path for split, path in layout.folders.items() if split != "train"}
    # Each class needs one sample for every split that is cut from these files.
    fit = list_images(layout.folders["train"], layout.classes, at_least=3 - len(own))
    others = {split: list_images(path, layout.classes, at_least=1) for split, path in own.items()}
    samples = _samples(*fit)
    splits: dict[SplitName, Sequence[_Sample]] = {split: _samples(*listed) for split, listed in others.items()}
    wanted: list[SplitName] = [split for split in ("test", "validation") if split not in own]
    edges = [1 - (1 - _TENTH) ** cuts for cuts in range(1, len(wanted) + 1)]
    chosen = cut([s.label for s in samples], [s.digest for s in samples], edges)
    for split, positions in zip([*wanted, "train"], chosen, strict=True):
        splits[split] = [samples[position] for position in positions]
    _check_classes(folder, layout.classes, splits)
    return layout.classes, splits


def _splits_of_the_record(folder: Path, record: SplitRecord) -> _Splits:
    if not folder.is_dir():
        raise UserError(f"Image folder `{folder}` does not exist or is not a folder.")
    record.check(folder)
    splits: dict[SplitName, Sequence[_Sample]] = {
        "train": [_Sample(folder / name, label, digest) for name, label, digest in record.train],
        "validation": [_Sample(folder / name, label, digest) for name, label, digest in record.validation],
        "test": [_Sample(folder / name, label, digest) for name, label, digest in record.test],
    }
    recorded = {sample.file for part in splits.values() for sample in part}
    others = [file for file in images_below(folder) if file not in recorded]
    added = len(others) - record.beyond
    if added > 0:
        such = "" if record.beyond else f", such as `{min(others).relative_to(folder)}`"
        warnings.warn(
            f"{added} image files in `{folder}` are not in the recorded splits and are left out{such}.", stacklevel=2
        )
    return splits


def _samples(files: Sequence[Path], labels: Sequence[int]) -> list[_Sample]:
    # A file that cannot be opened is reported later, together with all unreadable ones, when the images are read.
    found = zip(files, labels, digests(files), strict=True)
    return [_Sample(file, label, digest or _LAST) for file, label, digest in found]


def _first_of_each_class(samples: Sequence[_Sample], limit: int | None) -> list[_Sample]:
    labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    return [samples[i] for i in limited(torch.arange(len(samples)), labels, limit).tolist()]


def _check_classes(folder: Path, classes: Sequence[str], splits: _Splits) -> None:
    for split, samples in splits.items():
        absent = set(range(len(classes))) - {sample.label for sample in samples}
        if absent:
            raise UserError(
                f"Class `{classes[min(absent)]}` in `{folder}` has no image for the {split} split: the content of an "
                "image decides its split, so copies of one image are in one split. Add different "
                "images, or sort them into `train/`, `val/` and `test/` yourself."
            )


def _without(splits: _Splits, skipped: Mapping[Path, str], classes: Sequence[str]) -> _Splits:
    names = [sample.file for part in SPLITS for sample in splits[part] if sample.file in skipped]
    left = {part: [sample for sample in splits[part] if sample.file not in skipped] for part in SPLITS}
    for part in SPLITS:
        lost = {sample.label for sample in splits[part]} - {sample.label for sample in left[part]}
        if lost:
            raise UserError(
                f"No image of class `{classes[min(lost)]}` in the {part} split can be read. Remove the unreadable "
                f"files, so that others take their place: {named(names)}."
            )
    warnings.warn(
        f"{len(names)} of {sum(len(splits[part]) for part in SPLITS)} files cannot be read as images and are left "
        f"out: {named(names)}. The first: {skipped[names[0]]}.",
        stacklevel=3,
    )
    return left


def _split(images: Tensor, entries: Sequence[Entry]) -> Split:
    labels = torch.tensor([entry.label for entry in entries], dtype=torch.int64)
    return Split(images, labels, tuple(entry.name for entry in entries))


def _entry(sample: _Sample, folder: Path) -> Entry:
    return Entry(sample.file.relative_to(folder).as_posix(), sample.label, sample.digest)
