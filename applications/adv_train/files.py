"""Replace files atomically: after a crash or a full disk, a file has its old or its new content, never a part of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from adv_train.errors import UserError


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically: write a temporary file in the same folder, flush it to the disk, and rename it.

    Args:
        path: The file to write; its folder must exist.
        content: The whole content.

    Raises:
        UserError: If the file cannot be written (full disk, no permission). An existing file is then unchanged.
    """
    # The temporary name is fixed, so that the next save overwrites the file that a killed process left behind.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"Cannot write `{path}`: {error.strerror}. Its previous content is unchanged.") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents, if they do not exist.

    Raises:
        UserError: If the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder `{path}`: {error.strerror}.") from error


def _sync_folder(path: Path) -> None:
    # The new name is an entry of the folder, so the folder must be flushed to the disk as well.
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows cannot open folders, and flushes their entries itself.
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
