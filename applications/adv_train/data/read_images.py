"""Read many image files into one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adv_train.data.decode import Unreadable, decode
from adv_train.data.large import check_disk, finish, fits_in_memory, memory_of_machine, read_decoded, unfinished
from adv_train.errors import UserError

_CHUNK = 256
_MOST_NAMES = 10
_Result = TypeVar("_Result")


def read_images(
    files: Sequence[Path],
    *,
    size: int | None = None,
    crop: bool = True,
    skipped: dict[Path, str] | None = None,
    store: Path | None = None,
) -> Tensor:
    """Read image files, all square and of one size, as RGB, with a progress bar if it takes long.

    Args:
        files: At least one file.
        size: Resize the shorter side of each image to so many pixels and crop the centre.
        crop: Whether to crop; if False, both sides are resized to `size`.
        skipped: If given, receives each file that cannot be read, with the reason, and the pixels of that file are
            black. If None, such a file is an error.
        store: File of the decoded images, for images that take more than half of the memory. It is made if it does not
            exist, and stays if all files can be read, so that the next call does not decode them again. Its name must
            depend on the content of the files, on `size` and on `crop`.

    Returns:
        Shape ``(len(files), 3, size, size)``, uint8. `decode` converts other kinds of pixels.

    Raises:
        UserError: If files cannot be read as images; if, without ``size``, an image is not square or differs in size
            from the first; or if the images need more memory than the machine has, or with `store` more than the disk.
    """
    unreadable: dict[Path, str] = {}
    first, side = check_room(files, size, store)
    shape = (len(files), 3, side, side)

    def fill(position: int, file: Path) -> None:
        try:
            pixels = decode(file, size, crop=crop)
        except Unreadable as error:
            unreadable[file] = str(error)
            return
        height, width, _ = pixels.shape
        if height != width:
            raise UserError(
                f"Images must be square, but `{file}` is {width}x{height}. Crop it first, or give `size`, "
                f"such as size={min(height, width)}: the shorter side is resized and the centre kept."
            )
        if width != side:
            raise UserError(
                f"The images must all have one size, but `{first}` is {side}x{side} and `{file}` is "
                f"{width}x{width}. Resize them to one size first, or give `size`, such as size={min(side, width)}."
            )
        images[position] = pixels.transpose(2, 0, 1)

    if store is not None and fits_in_memory(math.prod(shape)):
        store = None
    if store is not None and store.exists():
        return torch.from_numpy(read_decoded(store, shape))
    with nullcontext(np.zeros(shape, np.uint8)) if store is None else unfinished(store, shape) as images:
        for_each_file(fill, files, "images")
        if unreadable and skipped is None:
            raise _cannot_be_read({file: unreadable[file] for file in files if file in unreadable}, len(files))
        if store is not None and not unreadable:
            finish(store)
    if skipped is not None:
        skipped.update(unreadable)
    return torch.from_numpy(images)


def for_each_file(work: Callable[[int, Path], _Result], files: Sequence[Path], title: str) -> list[_Result]:
    """Call ``work(position, file)`` for each file in threads, with a progress bar if it takes long; keep the order."""

    def chunk(start: int) -> list[_Result]:
        return [work(position, file) for position, file in enumerate(files[start : start + _CHUNK], start)]

    results: list[_Result] = []
    # Threads, not processes: Pillow releases the interpreter lock while it decodes, and threads share the results.
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(files), desc=title, unit="", delay=1, leave=False, disable=None) as bar,
    ):
        for done in pool.map(chunk, range(0, len(files), _CHUNK)):
            results += done
            bar.update(len(done))
    return results


def named(names: Sequence[object]) -> str:
    """List the first ten names and count the others: ``a`, `b` and 3 more``."""
    shown = ", ".join(f"`{name}`" for name in names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"


def _first_size(files: Sequence[Path], size: int | None) -> tuple[Path, int]:
    """Return the first readable file and its side in pixels, which all other images must have."""
    if size is not None:
        return files[0], size
    reasons: dict[Path, str] = {}
    for file in files:
        try:
            return file, decode(file).shape[1]
        except Unreadable as error:
            reasons[file] = str(error)
    raise _cannot_be_read(reasons, len(files))


def _cannot_be_read(reasons: dict[Path, str], among: int) -> UserError:
    first, reason = next(iter(reasons.items()))
    if len(reasons) == 1:
        what = f"`{first}` cannot be read as an image: {reason}."
    else:
        what = f"{len(reasons)} of {among} files cannot be read as images: {named([*reasons])}. The first: {reason}."
    return UserError(f"{what} Repair or remove these files, or leave them out with `skip_unreadable`.")


def check_room(files: Sequence[Path], size: int | None, store: Path | None) -> tuple[Path, int]:
    """Check that all images fit into memory or on the disk; otherwise the system would kill the process later.

    Args:
        files: At least one file.
        size: As for `read_images`.
        store: As for `read_images`.

    Returns:
        The first file that can be read, and the side in pixels that all images must have.

    Raises:
        UserError: If the images fit neither, or no file can be read.
    """
    first, side = _first_size(files, size)
    needed, there = len(files) * 3 * side * side, memory_of_machine()
    what = f"{len(files):,} images of {side}x{side} pixels, such as `{first}`,"
    if store is not None and not fits_in_memory(needed):
        check_disk(needed, store, what)
    elif there is not None and needed > there:
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB of memory, but the machine has {there / 2**30:.1f} GiB. Give a "
            "smaller `size`, such as size=64, or a limit."
        )
    return first, side
