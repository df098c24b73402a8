"""The German Traffic Sign Recognition Benchmark; torchvision downloads and checks it."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from adv_train.data.augment import Augment
from adv_train.data.dataset import Dataset
from adv_train.data.listing import Listing, listing, read_splits
from adv_train.data.published import fetched
from adv_train.data.registry import DATASETS
from adv_train.data.statistics import channel_statistics
from adv_train.data.stratified import limited, stratified_holdout

_CLASSES = (
    *(f"speed limit {speed} km/h" for speed in (20, 30, 50, 60, 70, 80)),
    *("end of speed limit 80 km/h", "speed limit 100 km/h", "speed limit 120 km/h", "no passing"),
    *("no passing for lorries", "right of way at next crossing", "priority road", "yield", "stop", "no vehicles"),
    *("no lorries", "no entry", "danger", "curve left", "curve right", "double curve", "bumpy road", "slippery road"),
    *("road narrows", "road work", "traffic lights", "pedestrians", "children", "cyclists", "snow", "wild animals"),
    *("end of all limits", "turn right", "turn left", "straight on", "straight on or right", "straight on or left"),
    *("keep right", "keep left", "roundabout", "end of no passing", "end of no passing for lorries"),
)
_ARCHIVES = "`GTSRB-Training_fixed.zip`, `GTSRB_Final_Test_Images.zip` and `GTSRB_Final_Test_GT.zip`"
_SOURCE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_ABOVE_ANY_TRACK = 100_000


@DATASETS.register("gtsrb")
def load(name: str, root: Path, limit: int | None) -> Dataset:
    """39,270 colour images of traffic signs in 43 classes, resized to 32x32 pixels; never mirrored.

    26,640 to train on and for validation, 12,630 to test. torchvision downloads these training images; the 39,209 of
    the competition's final stage can replace them in the same folder. A fixed tenth of the *tracks* of each class is
    for validation. A track is 30 frames of one sign; if its frames were in both splits, validation would reward
    memorisation. Source: Stallkamp et al. (2012), "Man vs. computer: benchmarking machine learning algorithms for
    traffic sign recognition".

    Args:
        name: Name of the data set.
        root: Folder of the data; missing files are downloaded into it.
        limit: Largest number of samples in the training split and in the validation split; others are not read.

    Raises:
        UserError: If the data are not on the disk and cannot be downloaded, or files cannot be read.
    """
    folder = root / "gtsrb"
    put = f"{_ARCHIVES} from {_SOURCE} into `{folder}`, and unpack them there"
    fit, test = fetched(name, root, lambda download: _listed(root, folder, download), put)
    kept, held_out = _by_track(fit)
    splits = read_splits(
        folder,
        {
            "train": (fit, limited(kept, fit.labels, limit)),
            "validation": (fit, limited(held_out, fit.labels, limit)),
            "test": (test, torch.arange(len(test.labels))),
        },
        size=32,
    )
    mean, std = channel_statistics(splits["train"].images)
    return Dataset(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        class_names=_CLASSES,
        mean=mean,
        std=std,
        augment=Augment(flip=False),  # Mirrored, "keep left" is "keep right".
    )


def _listed(root: Path, folder: Path, download: bool) -> tuple[Listing, Listing]:
    """List the training and the test images from their tables, so that a missing file is noticed."""
    from torchvision.datasets import GTSRB  # Not at the top: it takes seconds, and other data sets do not need it.

    for split in ("train", "test"):
        GTSRB(root, split, download=download)
    classes = [folder / "GTSRB" / "Training" / f"{number:05}" for number in range(len(_CLASSES))]
    fit = [row for path in classes for row in _rows(path / f"GT-{path.name}.csv", path)]
    test = _rows(folder / "GT-final_test.csv", folder / "GTSRB" / "Final_Test" / "Images")
    return listing(fit, len(_CLASSES)), listing(test, len(_CLASSES))


def _rows(table: Path, folder: Path) -> list[tuple[Path, int]]:
    with table.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter=";", skipinitialspace=True)
        return [(folder / row["Filename"], int(row["ClassId"])) for row in rows]


def _by_track(fit: Listing) -> tuple[Tensor, Tensor]:
    """Divide the training images by whole tracks; return the positions of those kept and of those held out."""
    # Files are named TRACK_FRAME.ppm, and every class numbers its tracks from 0.
    number = torch.tensor([int(file.stem.partition("_")[0]) for file in fit.files])
    tracks, track = torch.unique(fit.labels * _ABOVE_ANY_TRACK + number, return_inverse=True)
    _, chosen = stratified_holdout(tracks // _ABOVE_ANY_TRACK, round(len(tracks) / 10))
    held_out = torch.isin(track, chosen)
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)
