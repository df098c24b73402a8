"""MNIST and Fashion-MNIST; torchvision downloads, checks and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adv_train.data.augment import Augment
from adv_train.data.dataset import Dataset
from adv_train.data.published import fetched, with_a_tenth_held_out
from adv_train.data.registry import DATASETS
from adv_train.data.split import Split

if TYPE_CHECKING:
    from torchvision.datasets import MNIST


@DATASETS.register("mnist")
def mnist(name: str, root: Path, limit: int | None) -> Dataset:
    """70,000 grey handwritten digits of 28x28 pixels, downloaded by torchvision; no augmentation.

    Source: LeCun et al. (1998), "Gradient-based learning applied to document recognition".
    """
    from torchvision.datasets import MNIST  # Not at the top: it takes seconds, and other data sets do not need it.

    # A mirrored digit often looks like another digit, or like none; published code for robust training does not shift.
    return load(name, root, limit, source=MNIST, class_names=tuple(str(digit) for digit in range(10)), augment=None)


@DATASETS.register("fashion-mnist")
def fashion_mnist(name: str, root: Path, limit: int | None) -> Dataset:
    """70,000 grey images of clothes, 28x28 pixels, in 10 classes, downloaded by torchvision.

    Source: Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST: a novel image dataset".
    """
    from torchvision.datasets import FashionMNIST

    classes = tuple(FashionMNIST.classes)
    return load(name, root, limit, source=FashionMNIST, class_names=classes, augment=Augment())


def load(
    name: str,
    root: Path,
    limit: int | None,
    *,
    source: type[MNIST],
    class_names: tuple[str, ...],
    augment: Augment | None,
) -> Dataset:
    """Load 54,000 images to train on, 6,000 for validation, 10,000 to test.

    Args:
        name: Name of the data set.
        root: Folder of the data; missing files are downloaded into it.
        limit: Largest number of samples in the training split and in the validation split.
        source: The class of torchvision that reads the data set.
        class_names: Names of the classes, in the order of the labels.
        augment: Augmentation of the training images.

    Raises:
        UserError: If the data are not on the disk and cannot be downloaded.
    """
    archives = ", ".join(f"`{archive}`" for archive, _ in source.resources)
    fit, test = fetched(
        name,
        root,
        lambda download: tuple(source(root, train=train, download=download) for train in (True, False)),
        f"{archives} from {source.mirrors[0]} into `{root / source.__name__ / 'raw'}`",
    )
    return with_a_tenth_held_out(name, _split(fit), _split(test), limit, class_names=class_names, augment=augment)


def _split(source: MNIST) -> Split:
    return Split(source.data.unsqueeze(1), source.targets)
