"""Images that do not fit: in memory, they are decoded once into a file; on an accelerator, batches are copied to it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adv_train.errors import UserError

_SHARE = 0.5
"""The images may take this share of the memory; models, copies and the rest of the system take the other half."""

_ROWS = 4096


def memory_of_machine() -> int | None:
    """Return the bytes of memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def fits_in_memory(needed: int) -> bool:
    """Return whether images of so many bytes may stay in the memory of this machine."""
    there = memory_of_machine()
    return there is None or needed <= _SHARE * there


def fits_on(device: torch.device, images: Tensor) -> bool:
    """Return whether images may stay on a device; the memory of a CPU is that in which they already are."""
    if device.type != "cuda" or images.device == device:
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= _SHARE * free


def check_disk(needed: int, file: Path, what: str) -> None:
    """Check that a file of so many bytes has room on its disk.

    Args:
        needed: Size of the file in bytes.
        file: The file; its folder need not exist.
        what: The images that it holds, for the error.

    Raises:
        UserError: If it has not.
    """
    if file.exists():
        return
    above = next(folder for folder in file.absolute().parents if folder.exists())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB, more than half of the memory of this machine, and `{above}` has "
            f"only {free / 2**30:.1f} GiB left for a file of them. Give a smaller `size`, such as size=64, a limit, or "
            "a --data-root on another disk."
        )


@contextlib.contextmanager
def unfinished(store: Path, shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.uint8]]:
    """Map a new file into memory, as an array of uint8 to write images to; `finish` gives it the name `store`.

    At the end of the block an unfinished file loses its name, and the system frees it with the array.

    Args:
        store: The file to make; its folder is made too.
        shape: Shape of the array.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    part = _part(store)
    try:
        images: npt.NDArray[np.uint8] = np.memmap(part, dtype=np.uint8, mode="w+", shape=shape)
        yield images
    finally:
        part.unlink(missing_ok=True)


def finish(store: Path) -> None:
    """Give the file that this process writes its name."""
    _part(store).replace(store)


def _part(store: Path) -> Path:
    return store.with_suffix(f".{os.getpid()}.part")


def read_decoded(file: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Map a file that `finish` has named into memory; the system reads the pages that are used.

    Raises:
        UserError: If the file has another size.
    """
    if file.stat().st_size != np.prod(shape, dtype=np.int64):
        raise UserError(f"`{file}` does not hold images of shape {shape}. Delete it, and they are decoded again.")
    images: npt.NDArray[np.uint8] = np.memmap(file, dtype=np.uint8, mode="c", shape=shape)
    return images


def only_rows(images: Tensor, kept: Tensor) -> Tensor:
    """Return the rows where `kept`, booleans of shape `(len(images),)`, is true; they are moved in place.

    A copy of all rows would need the memory of the images a second time.
    """
    places = kept.nonzero().flatten()
    for first, rows in zip(range(0, len(places), _ROWS), places.split(_ROWS), strict=True):
        images[first : first + len(rows)] = images[rows]  # each row moves towards the front, and none is needed again
    return images[: len(places)]
