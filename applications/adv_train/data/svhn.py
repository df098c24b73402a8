"""Street View House Numbers, read, downloaded and checked by torchvision."""

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

    65,931 to train on, 7,326 for validation, 26,032 to test; the 531,131 images called "extra" are left out. The
    label of a digit is the digit: torchvision turns the 10 that the files hold for a zero into 0. Source: Netzer et
    al. (2011), "Reading digits in natural images with unsupervised feature learning".

    Args:
        name: Of the data set.
        root: Folder of the data; downloaded into where it is not there yet.
        limit: Most samples in the training split, and in the validation split.

    Raises:
        UserError: When the data are neither there nor to be had.
    """
    from torchvision.datasets import SVHN  # Not at the top: it takes seconds, and other data sets need it not.

    fit, test = fetched(
        name,
        root,
        lambda download: tuple(SVHN(root, split, download=download) for split in ("train", "test")),
        f"`train_32x32.mat` and `test_32x32.mat` from {_SOURCE} into `{root}`",
    )
    digits = tuple(str(digit) for digit in range(10))
    # A mirrored digit is often another digit, or none. Crops as Andriushchenko and Flammarion (NeurIPS 2020).
    augment = Augment(flip=False)
    return with_a_tenth_held_out(name, _split(fit), _split(test), limit, class_names=digits, augment=augment)


def _split(source: SVHN) -> Split:
    return Split(torch.from_numpy(source.data).contiguous(), torch.from_numpy(source.labels))
