"""Handwritten digits that come with scikit-learn, without a download."""

from __future__ import annotations

from pathlib import Path

import torch

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
    from sklearn.datasets import load_digits  # Not at the top: listing the data sets does not need it.

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    everything = Split(images, torch.from_numpy(bunch.target).long())
    rest, test = stratified_holdout(everything.labels, _TEST)
    kept, validation = stratified_holdout(everything.labels[rest], _VALIDATION)
    train = everything.subset(limited(rest[kept], everything.labels, limit))
    mean, std = channel_statistics(train.images)
    return Dataset(
        name=name,
        train=train,
        validation=everything.subset(limited(rest[validation], everything.labels, limit)),
        test=everything.subset(test),
        class_names=tuple(str(name) for name in bunch.target_names),
        mean=mean,
        std=std,
        # A mirrored or shifted 8x8 digit often looks like another digit, or like none.
        augment=None,
    )
