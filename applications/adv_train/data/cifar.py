"""CIFAR-10 and CIFAR-100, read, downloaded and checked by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from adv_train.data.augment import Augment
from adv_train.data.dataset import Dataset
from adv_train.data.published import fetched
from adv_train.data.registry import DATASETS
from adv_train.data.split import Split
from adv_train.data.stratified import limited

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

_VALIDATION = 5_000


# Mean and standard deviation: Wong, Rice and Kolter (2020), "Fast is better than free", and the codes after
# it; for CIFAR-100 the training set's own to four digits. Augmentation: Zhang et al. (ICML 2022).
@DATASETS.register("cifar10")
def cifar10(name: str, root: Path, limit: int | None) -> Dataset:
    """60,000 colour images of 32x32 pixels in 10 classes, downloaded by torchvision; see `load`."""
    from torchvision.datasets import CIFAR10  # Not at the top: it takes seconds, and other data sets need it not.

    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    return load(name, root, limit, source=CIFAR10, mean=mean, std=std, augment=Augment())


@DATASETS.register("cifar100")
def cifar100(name: str, root: Path, limit: int | None) -> Dataset:
    """The same in 100 classes, from other images."""
    from torchvision.datasets import CIFAR100

    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return load(name, root, limit, source=CIFAR100, mean=mean, std=std, augment=Augment(rotation=15.0))


def load(
    name: str,
    root: Path,
    limit: int | None,
    *,
    source: type[CIFAR10],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    augment: Augment,
) -> Dataset:
    """Load 45,000 images to train on, the last 5,000 of the training file for validation, 10,000 to test.

    Args:
        name: Of the data set.
        root: Folder of the data; downloaded into where it is not there yet.
        limit: Most samples in the training split, and in the validation split.
        source: The class that reads it.
        mean: Of each channel, as the published codes have it.
        std: Of each channel, likewise.
        augment: What the training images go through.

    Raises:
        UserError: When the data are neither there nor to be had.
    """
    fit, test = fetched(
        name,
        root,
        lambda download: tuple(source(root, train=train, download=download) for train in (True, False)),
        f"`{source.filename}` from {source.url} into `{root}`, as it is or unpacked to `{root / source.base_folder}`",
    )
    everything = _split(fit)
    train, validation = torch.arange(len(everything)).split([len(everything) - _VALIDATION, _VALIDATION])
    return Dataset(
        name=name,
        train=everything.subset(limited(train, everything.labels, limit)),
        validation=everything.subset(limited(validation, everything.labels, limit)),
        test=_split(test),
        class_names=tuple(fit.classes),
        mean=mean,
        std=std,
        augment=augment,
    )


def _split(source: CIFAR10) -> Split:
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(source.targets))
