"""STL-10, read, downloaded and checked by torchvision."""

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

    4,500 to train on, 500 for validation, 8,000 to test; the 100,000 images without labels are left out, though they
    are part of the archive (2.6 GB). Source: Coates, Lee and Ng (AISTATS 2011).

    Args:
        name: Of the data set.
        root: Folder of the data; downloaded into where it is not there yet.
        limit: Most samples in the training split, and in the validation split.

    Raises:
        UserError: When the data are neither there nor to be had.
    """
    from torchvision.datasets import STL10  # Not at the top: it takes seconds, and other data sets need it not.

    fit, test = fetched(
        name,
        root,
        lambda download: tuple(STL10(root, split, download=download) for split in ("train", "test")),
        f"`{STL10.filename}` from {STL10.url} into `{root}`, as it is or unpacked to `{root / STL10.base_folder}`",
    )
    return with_a_tenth_held_out(name, _split(fit), _split(test), limit, class_names=_CLASSES, augment=Augment())


def _split(source: STL10) -> Split:
    return Split(torch.from_numpy(source.data).contiguous(), torch.from_numpy(source.labels).long())
