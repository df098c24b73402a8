"""Replacing a file so that a reader, a crash or a full disk sees the old content or the new, never a part."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from adv_train.errors import UserError


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one piece: a temporary file beside it, flushed to the disk, takes its name.

    Args:
        path: The file to write; its folder must exist.
        content: All of it.

    Raises:
        UserError: When it cannot be written (full disk, no permission). What was there before is unchanged.
    """
    # One fixed name: what a killed process left behind is overwritten by the next save instead of piling up.
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
        raise UserError(f"Cannot write `{path}`: {error.strerror}. What it held before is unchanged.") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where they do not exist yet.

    Raises:
        UserError: When that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder `{path}`: {error.strerror}.") from error


def _sync_folder(path: Path) -> None:
    # The new name is an entry of the folder, which has to reach the disk as well.
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders, and keeps their entries safe itself.
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
