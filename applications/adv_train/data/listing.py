"""Published data sets that have one file for each image: their tables of files, and the splits made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adv_train.data.read_images import named, read_images
from adv_train.data.split import Split, SplitName
from adv_train.errors import UserError


class Listing(NamedTuple):
    """Files and their labels, as the tables of a data set list them.

    Attributes:
        files: Paths of the n images.
        labels: Shape ``(n,)``, int64.
    """

    files: list[Path]
    labels: Tensor


def listing(rows: Sequence[tuple[Path, int]], classes: int) -> Listing:
    """Make a listing from its rows.

    Raises:
        ValueError: If a class has no row, because a table is missing or truncated.
    """
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    absent = set(range(classes)) - set(labels.tolist())
    if absent:
        raise ValueError(f"no image of class {min(absent)} is listed")
    return Listing([file for file, _ in rows], labels)


def read_splits(
    folder: Path, chosen: Mapping[SplitName, tuple[Listing, Tensor]], *, size: int | None = None
) -> dict[SplitName, Split]:
    """Read the images of all splits together, so that all must have one size, and one progress bar covers them.

    Args:
        folder: Folder of the data set; names of files are relative to it.
        chosen: For each split a listing and the positions in it, int64.
        size: Resize each image to a square with sides of so many pixels, whatever its shape.

    Raises:
        UserError: If files cannot be read, or the images do not fit into memory.
    """
    files = [listed.files[i] for listed, positions in chosen.values() for i in positions.tolist()]
    skipped: dict[Path, str] = {}
    images = read_images(files, size=size, crop=False, skipped=skipped)
    if skipped:
        raise UserError(
            f"{len(skipped)} of {len(files)} files cannot be read as images: {named([*skipped])}. "
            f"Remove `{folder}`: it is then unpacked or downloaded again."
        )
    names = [file.relative_to(folder).as_posix() for file in files]
    splits, start = {}, 0
    for split, (listed, positions) in chosen.items():
        stop = start + len(positions)
        splits[split] = Split(images[start:stop], listed.labels[positions], tuple(names[start:stop]))
        start = stop
    return splits
