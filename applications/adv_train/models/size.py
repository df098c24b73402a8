"""Whether a model fits into the memory of the machine, asked before anything is allocated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from adv_train.errors import UserError

#: Training holds weights, gradients and momentum, and weights once more in a checkpoint that is written.
_COPIES: Final = 4
_BYTES: Final = 4
#: What may still be taken: of the machine, and of the control group (versions 2 and 1) that a container is.
_SOURCES: Final = (
    ("/proc/meminfo", r"MemAvailable:\s+(\d+) kB", 1024),
    ("/sys/fs/cgroup/memory.max", r"^(\d+)$", 1),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", r"^(\d+)$", 1),
)
_ASSUMED: Final = 8 * 2**30  # where the system says nothing


def check_size(name: str, parameters: int, image_size: int) -> None:
    """Refuse a model whose training would make the system kill the process, such as a dense layer on large images.

    Args:
        name: Of the model.
        parameters: How many it would have.
        image_size: Side of its images in pixels.

    Raises:
        UserError: When four times its weights are more than the memory that is available.
    """
    needed, available = _COPIES * _BYTES * parameters, available_memory()
    if needed > available:
        raise UserError(
            f"Model `{name}` would have {parameters:,} parameters for images of {image_size}x{image_size} pixels: "
            f"training takes {needed / 2**30:,.1f} GiB for them, but {available / 2**30:,.1f} GiB of memory are "
            "available. Resize the images (`size`, such as size=224), or choose a smaller model."
        )


def available_memory() -> int:
    """Return the bytes of main memory that a process can still take."""
    found = [
        unit * int(match[1])
        for path, pattern, unit in _SOURCES
        if Path(path).is_file() and (match := re.search(pattern, Path(path).read_text(), re.MULTILINE))
    ]
    return min(found, default=_ASSUMED)
