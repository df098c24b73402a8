"""A few images of the real CIFAR-10 archive that may lie beside the repository."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

_ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def unpack_cifar10_jpeg(into: Path, *, train: int, test: int) -> None:
    """Unpack the first images of each class as ``train/<class>/NNNN.jpg`` and ``test/<class>/NNNN.jpg``.

    Skips the calling test where the archive is not at hand.

    Args:
        into: An empty folder.
        train: Images of each class to train on.
        test: Images of each class to test on.
    """
    if not _ARCHIVE.is_file():
        pytest.skip(f"the archive of real images is not there: {_ARCHIVE.name}")
    keep = {"train": train, "test": test}
    with tarfile.open(_ARCHIVE) as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and int(path.stem) < keep[path.parts[0]]:
                archive.extract(member, into, filter="data")
