"""Published data sets: found on the disk or downloaded, and held out from where only training and test are given."""

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
# Of reading, where files are missing, cut off or damaged; and of a download without a network.
_FAILURES = (OSError, RuntimeError, ValueError, LookupError, AssertionError)


def fetched(name: str, root: Path, read: Callable[[bool], T], put: str) -> T:
    """Read a data set from the disk, or else download and read it.

    Args:
        name: Of the data set.
        root: Folder of the data sets.
        read: Called with whether to download first.
        put: Which files from where go into which folder, for a machine without a network: completes "Put ...".

    Returns:
        What `read` returned.

    Raises:
        UserError: When the data are neither on the disk nor to be had.
    """
    try:
        return read(False)
    except _FAILURES:
        pass  # Missing, incomplete, or of another checksum: the download mends all three.
    try:
        return read(True)
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Data set `{name}` in `{root}` is missing or damaged and could not be downloaded ({reason}). "
            f"Put {put}, in place of anything there, or name the folder that holds it."
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

    A tenth of the training images, of all classes in proportion and always the same, is for validation. The
    normalisation is that of the training split.

    Args:
        name: Of the data set.
        fit: All published training images.
        test: All published test images.
        limit: Most samples in the training split, and in the validation split.
        class_names: In the order of the labels.
        augment: What the training images go through.
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
