"""The weights in a checkpoint file, and which records of evaluation belong to them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from adv_train.checkpoint import load
from adv_train.digests import digest
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation


def weights_in(file: Path) -> str | None:
    """Return the digest of the weights to evaluate in a checkpoint file, as records have it under ``weights``.

    The file is read again only if its time or size has changed.

    Returns:
        16 hexadecimal digits; None if the file is missing, or is no checkpoint that can be read.
    """
    try:
        stamp = file.stat()
        return _read(file.resolve(), stamp.st_mtime_ns, stamp.st_size)
    except (OSError, UserError):
        return None


def of_weights(records: Iterable[Evaluation], file: Path) -> list[Evaluation]:
    """Leave out the records of other weights than those in a checkpoint file.

    Records that do not name their weights stay. If the file cannot be read, all stay: a record may outlive its weights.
    """
    found = list(records)
    if all("weights" not in record.about for record in found) or (present := weights_in(file)) is None:
        return found
    return [record for record in found if record.about.get("weights", present) == present]


@lru_cache(maxsize=4096)
def _read(file: Path, *stamp: int) -> str:
    """Return the digest of the weights in a file; `stamp` changes with the file."""
    return digest(load(file).judged)[:16]
