"""STL-10; torchvision downloads, checks and reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from adv_train.data.augment import Augment
from adv_train.data.dataset import Dataset
from adv_train.data.published import fetched, with_a_tenth_held_out
from adv_train.data.registry import DATASETS
from adv_train.data.split import Split

if TYPE_CHECKING:
    from torchvision.datasets import STL10

_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@DATASETS.register("stl10")
def load(name: str, root: Path, limit: int | None) -> Dataset:
    """13,000 labelled colour images of 96x96 pixels in 10 classes, downloaded by torchvision.

    4,500 to train on, 500 for validation, 8,000 to test. The 100,000 images without labels are not used, but they are
    part of the archive (2.6 GB). Source: Coates, Lee and Ng (AISTATS 2011).

    Args:
        name: Name of the data set.
        root: Folder of the data; missing files are downloaded into it.
        limit: Largest number of samples in the training split and in the validation split.

    Raises:
        UserError: If the data are not on the disk and cannot be downloaded.
    """
    from torchvision.datasets import STL10  # Not at the top: it takes seconds, and other data sets do not need it.

    fit, test = fetched(
        name,
        root,
        lambda download: tuple(STL10(root, split, download=download) for split in ("train", "test")),
        f"`{STL10.filename}` from {STL10.url} into `{root}`, as it is or unpacked to `{root / STL10.base_folder}`",
    )
    return with_a_tenth_held_out(name, _split(fit), _split(test), limit, class_names=_CLASSES, augment=Augment())


def _split(source: STL10) -> Split:
    return Split(torch.from_numpy(source.data).contiguous(), torch.from_numpy(source.labels).long())
