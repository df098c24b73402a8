"""Many image files into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from adv_train.errors import UserError

_CHUNK = 256
# What Pillow raises, format by format, on a file that is not the image it claims to be.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read_images(files: Sequence[Path]) -> Tensor:
    """Read image files, all square and of one size, as colour, with a bar when it takes long.

    Args:
        files: At least one.

    Returns:
        Shape ``(len(files), 3, size, size)``, uint8. Grey-scale and palette images are converted,
        transparency is dropped.

    Raises:
        UserError: When a file cannot be read as an image, is not square, or differs in size from the first.
    """
    size = _read(files[0]).shape[0]
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)

    def fill(start: int) -> int:
        chunk = files[start : start + _CHUNK]
        for position, file in enumerate(chunk, start):
            pixels = _read(file)
            if len(pixels) != size:
                raise UserError(
                    f"The images must all have one size, but `{files[0]}` is {size}x{size} and `{file}` is "
                    f"{len(pixels)}x{len(pixels)}. Resize them to one size first."
                )
            images[position] = pixels.transpose(2, 0, 1)
        return len(chunk)

    # Threads, not processes: Pillow decodes without the interpreter lock, and nothing has to be sent back.
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(files), desc="images", unit="", delay=1, leave=False, disable=None) as bar,
    ):
        for read in pool.map(fill, range(0, len(files), _CHUNK)):
            bar.update(read)
    return torch.from_numpy(images)


def _read(file: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width != height:
                raise UserError(f"Images must be square, but `{file}` is {width}x{height}. Crop or resize it first.")
            return np.asarray(image.convert("RGB"))
    except _UNREADABLE as error:
        raise UserError(f"`{file}` cannot be read as an image: {' '.join(str(error).split())}.") from error
