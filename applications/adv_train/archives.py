"""Read archives of arrays (`.npz`), of which a damaged one gives a single kind of error and runs no code."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def load_arrays(path: Path, names: Sequence[str] | None = None) -> Arrays:
    """Read arrays of an archive.

    Args:
        path: The file.
        names: Names of the arrays; by default all.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is damaged, or has no array of such a name.
    """
    # Read from memory: NumPy would leave the file of a damaged archive open.
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as archive:
            return {name: archive[name] for name in names or archive.files}
    # A flipped byte can raise nearly anything: zlib.error, BadZipFile, NotImplementedError, struct.error, EOFError, ...
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
