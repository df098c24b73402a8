"""Checks that a model fits into the memory of the machine, before anything is allocated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from adv_train.errors import UserError

#: Training holds weights, gradients and momentum, and another copy of the weights while it writes a checkpoint.
_COPIES: Final = 4
_BYTES: Final = 4
#: Files with the available memory of the machine, and with the limit of a container's control group (versions 2, 1).
_SOURCES: Final = (
    ("/proc/meminfo", r"MemAvailable:\s+(\d+) kB", 1024),
    ("/sys/fs/cgroup/memory.max", r"^(\d+)$", 1),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", r"^(\d+)$", 1),
)
_ASSUMED: Final = 8 * 2**30  # if the system has none of these files


def check_size(name: str, parameters: int, image_size: int) -> None:
    """Check that the available memory suffices to train a model, which a dense layer on large images may exceed.

    If it did not, the operating system would kill the process during training.

    Args:
        name: Name of the model.
        parameters: Number of its parameters.
        image_size: Side of its images in pixels.

    Raises:
        UserError: If four copies of its weights need more memory than is available.
    """
    needed, available = _COPIES * _BYTES * parameters, available_memory()
    if needed > available:
        raise UserError(
            f"Model `{name}` would have {parameters:,} parameters for images of {image_size}x{image_size} pixels: "
            f"training needs {needed / 2**30:,.1f} GiB for them, but {available / 2**30:,.1f} GiB of memory are "
            "available. Resize the images (`size`, such as size=224), or choose a smaller model."
        )


def available_memory() -> int:
    """Return the bytes of main memory that a process can still allocate."""
    found = [
        unit * int(match[1])
        for path, pattern, unit in _SOURCES
        if Path(path).is_file() and (match := re.search(pattern, Path(path).read_text(), re.MULTILINE))
    ]
    return min(found, default=_ASSUMED)
