"""Keep the memory that a training step frees, because the next step needs as much."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

#: Numbers of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's `mallopt`, sizes in bytes above which freed memory goes
#: back to the system, and their largest values.
_THRESHOLDS: Final = ((-1, 2**31 - 1), (-3, 2**25))
#: The variables of the environment by which a user sets them.
_CHOSEN: Final = {"GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for this process; do nothing with other C libraries, or if the user has chosen.

    By default glibc returns the activations of a step to the system, from which the next step gets them back in pages
    that are cleared one by one. On a CPU this takes about a fifth of a small network's step, and the share depends on
    chance: on the places of all blocks in memory. The largest memory of a run stays the same.
    """
    if sys.platform != "linux" or _CHOSEN & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for number, value in _THRESHOLDS:
            mallopt(number, value)
