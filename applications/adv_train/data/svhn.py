"""Street View House Numbers; torchvision downloads, checks and reads them."""

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
    from torchvision.datasets import SVHN

_SOURCE = "http://ufldl.stanford.edu/housenumbers/"


@DATASETS.register("svhn")
def load(name: str, root: Path, limit: int | None) -> Dataset:
    """99,289 colour images of house numbers, 32x32 pixels, in 10 classes by the digit in the middle; never mirrored.

    65,931 to train on, 7,326 for validation, 26,032 to test; the 531,131 images called "extra" are not used. The label
    of a digit is the digit: the files label a zero as 10, which torchvision changes to 0. Source: Netzer et al. (2011),
    "Reading digits in natural images with unsupervised feature learning".

    Args:
        name: Name of the data set.
        root: Folder of the data; missing files are downloaded into it.
        limit: Largest number of samples in the training split and in the validation split.

    Raises:
        UserError: If the data are not on the disk and cannot be downloaded.
    """
    from torchvision.datasets import SVHN  # Not at the top: it takes seconds, and other data sets do not need it.

    fit, test = fetched(
        name,
        root,
        lambda download: tuple(SVHN(root, split, download=download) for split in ("train", "test")),
        f"`train_32x32.mat` and `test_32x32.mat` from {_SOURCE} into `{root}`",
    )
    digits = tuple(str(digit) for digit in range(10))
    # A mirrored digit often looks like another digit, or like none. Crops as in Andriushchenko and Flammarion (2020).
    augment = Augment(flip=False)
    return with_a_tenth_held_out(name, _split(fit), _split(test), limit, class_names=digits, augment=augment)


def _split(source: SVHN) -> Split:
    return Split(torch.from_numpy(source.data).contiguous(), torch.from_numpy(source.labels))
