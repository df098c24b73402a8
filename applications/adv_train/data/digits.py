"""Handwritten digits that come with scikit-learn, without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adv_train.data.dataset import Dataset
from adv_train.data.registry import DATASETS
from adv_train.data.split import Split
from adv_train.data.statistics import channel_statistics
from adv_train.data.stratified import limited, stratified_holdout

_TEST, _VALIDATION = 360, 180


@DATASETS.register("digits")
def load(name: str, root: Path, limit: int | None) -> Dataset:
    """1,797 grey handwritten digits of 8x8 pixels that come with scikit-learn; no download.

    1,257 to train on, 180 for validation, 360 to test. The values are multiples of 1/16 in [0, 1]. Source: Alpaydin and
    Kaynak (1998), "Optical recognition of handwritten digits", the test part of the UCI data set.

    Args:
        name: Name of the data set.
        root: Not used.
        limit: Largest number of samples in the training split and in the validation split.
    """
    pixels, labels = _pixels_and_labels()
    everything = Split(pixels.float().view(-1, 1, 8, 8) / 16, labels.long())
    rest, test = stratified_holdout(everything.labels, _TEST)
    kept, validation = stratified_holdout(everything.labels[rest], _VALIDATION)
    train = everything.subset(limited(rest[kept], everything.labels, limit))
    mean, std = channel_statistics(train.images)
    return Dataset(
        name=name,
        train=train,
        validation=everything.subset(limited(rest[validation], everything.labels, limit)),
        test=everything.subset(test),
        class_names=tuple("0123456789"),
        mean=mean,
        std=std,
        # A mirrored or shifted 8x8 digit often looks like another digit, or like none.
        augment=None,
    )


def _pixels_and_labels() -> tuple[Tensor, Tensor]:
    """Read scikit-learn's file of digits without importing scikit-learn, which takes longer than an epoch of training.

    Only if the file is not at its place is the package imported; its function for this is the same `loadtxt`.
    """
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or []:
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            table = torch.from_numpy(np.loadtxt(file, delimiter=","))
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels), torch.from_numpy(labels)
