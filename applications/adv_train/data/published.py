"""Read or download published data sets, and hold out a validation split if they have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from adv_train.data.augment import Augment
from adv_train.data.dataset import Dataset
from adv_train.data.split import Split
from adv_train.data.statistics import channel_statistics
from adv_train.data.stratified import limited, stratified_holdout
from adv_train.errors import UserError

T = TypeVar("T")
# Raised by reading if files are missing, truncated or damaged, and by a download without a network.
_FAILURES = (OSError, RuntimeError, ValueError, LookupError, AssertionError)


def fetched(name: str, root: Path, read: Callable[[bool], T], put: str) -> T:
    """Read a data set from the disk; if that fails, download and read it.

    Args:
        name: Name of the data set.
        root: Folder of the data sets.
        read: Reads the data set; its argument says whether to download first.
        put: Files to fetch by hand, their source and their folder, for a machine without a network; it completes the
            sentence "Put ...".

    Returns:
        The return value of `read`.

    Raises:
        UserError: If the data are not on the disk and cannot be downloaded.
    """
    try:
        return read(False)
    except _FAILURES:
        pass  # Files are missing or incomplete, or have another checksum; a download repairs all three.
    try:
        return read(True)
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Data set `{name}` in `{root}` is missing or damaged and could not be downloaded ({reason}). "
            f"Put {put}, replacing any files there, or give the folder that holds the data."
        ) from error


def with_a_tenth_held_out(
    name: str,
    fit: Split,
    test: Split,
    limit: int | None,
    *,
    class_names: tuple[str, ...],
    augment: Augment | None,
) -> Dataset:
    """Make a data set of published training and test images.

    A fixed tenth of the training images of each class is for validation. The normalisation uses the mean and standard
    deviation of the training split.

    Args:
        name: Name of the data set.
        fit: All published training images.
        test: All published test images.
        limit: Largest number of samples in the training split and in the validation split.
        class_names: Names of the classes, in the order of the labels.
        augment: Augmentation of the training images.
    """
    kept, held_out = stratified_holdout(fit.labels, round(len(fit) / 10))
    train = fit.subset(limited(kept, fit.labels, limit))
    mean, std = channel_statistics(train.images)
    return Dataset(
        name=name,
        train=train,
        validation=fit.subset(limited(held_out, fit.labels, limit)),
        test=test,
        class_names=class_names,
        mean=mean,
        std=std,
        augment=augment,
    )
