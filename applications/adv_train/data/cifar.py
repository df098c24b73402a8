"""CIFAR-10 and CIFAR-100; torchvision downloads, checks and reads them."""

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


# Mean and standard deviation of CIFAR-10: Wong, Rice and Kolter (2020), "Fast is better than free", and later code; of
# CIFAR-100: those of the training set to four digits. Augmentation: Zhang et al. (ICML 2022).
@DATASETS.register("cifar10")
def cifar10(name: str, root: Path, limit: int | None) -> Dataset:
    """60,000 colour images of 32x32 pixels in 10 classes, downloaded by torchvision."""
    from torchvision.datasets import CIFAR10  # Not at the top: it takes seconds, and other data sets do not need it.

    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    return load(name, root, limit, source=CIFAR10, mean=mean, std=std, augment=Augment())


@DATASETS.register("cifar100")
def cifar100(name: str, root: Path, limit: int | None) -> Dataset:
    """60,000 colour images of 32x32 pixels in 100 classes, downloaded by torchvision; none is in CIFAR-10."""
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
        name: Name of the data set.
        root: Folder of the data; missing files are downloaded into it.
        limit: Largest number of samples in the training split and in the validation split.
        source: The class of torchvision that reads the data set.
        mean: Mean of each channel, as in the published code.
        std: Standard deviation of each channel, as in the published code.
        augment: Augmentation of the training images.

    Raises:
        UserError: If the data are not on the disk and cannot be downloaded.
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
