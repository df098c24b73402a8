"""CIFAR-10 and CIFAR-100, read, downloaded and checked by torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from adv_train.data.augment import Augment
from adv_train.data.dataset import Dataset
from adv_train.data.split import Split
from adv_train.data.stratified import limited
from adv_train.errors import UserError

_VALIDATION = 5_000


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Attributes:
        name: As given to `adv_train.data.load`.
        source: The class that reads it.
        mean: Of each channel, as the published codes have it.
        std: Of each channel, likewise.
        augment: What the training images go through.
    """

    name: str
    source: type[CIFAR10]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augment: Augment

    def load(self, root: Path, limit: int | None) -> Dataset:
        """Load 45,000 images to train on, the last 5,000 of the training file for validation, 10,000 to test.

        Args:
            root: Folder of the data; downloaded into where it is not there yet.
            limit: Most samples in the training split, and in the validation split.

        Raises:
            UserError: When the data are neither there nor to be had.
        """
        fit, test = self._read(root, train=True), self._read(root, train=False)
        everything = _split(fit)
        train, validation = torch.arange(len(everything)).split([len(everything) - _VALIDATION, _VALIDATION])
        return Dataset(
            name=self.name,
            train=everything.subset(limited(train, everything.labels, limit)),
            validation=everything.subset(limited(validation, everything.labels, limit)),
            test=_split(test),
            class_names=tuple(fit.classes),
            mean=self.mean,
            std=self.std,
            augment=self.augment,
        )

    def _read(self, root: Path, *, train: bool) -> CIFAR10:
        try:
            return self.source(root, train=train)
        except RuntimeError:
            pass  # Missing, incomplete, or its checksums differ: all three are mended by the download.
        try:
            return self.source(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"Data set `{self.name}` is not in `{root}` and could not be downloaded "
                f"({_one_line(error)}). Put `{self.source.filename}` from {self.source.url} into `{root}`, "
                f"as it is or unpacked to `{root / self.source.base_folder}`, or name the folder that holds it."
            ) from error


def _split(source: CIFAR10) -> Split:
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(source.targets))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# Mean and standard deviation: Wong, Rice and Kolter (2020), "Fast is better than free", and the codes after
# it; for CIFAR-100 the training set's own to four digits. Augmentation: Zhang et al. (ICML 2022).
CIFAR_10 = Cifar("cifar10", CIFAR10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616), Augment())
CIFAR_100 = Cifar("cifar100", CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), Augment(rotation=15.0))
