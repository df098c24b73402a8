"""Adversarial images in a file: each attack's image of each sample, as bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adv_train.archives import load_arrays
from adv_train.errors import UserError
from adv_train.evaluation.record import Evaluation
from adv_train.files import make_folder, replace_file

Bytes = npt.NDArray[np.uint8]


def check_image_file(path: Path) -> None:
    """Check that a file can be written, before hours of work.

    Raises:
        UserError: If its name does not end in ``.npz``, or its folder cannot be made or written to.
    """
    if path.suffix != ".npz":
        raise UserError(f"Adversarial images are saved as an .npz file, but `{path}` does not end in .npz.")
    if path.is_dir():
        raise UserError(f"Cannot write `{path}`: it is a folder.")
    make_folder(path.parent)
    trial = path.with_name(f".{path.name}.trial")
    try:
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise UserError(f"Cannot write `{path}`: {error.strerror}.") from error


def write_images(path: Path, record: Evaluation, clean: Bytes, images: Mapping[str, Bytes], name: str = "") -> None:
    """Write images as bytes into one file, in one piece.

    The file holds ``clean`` ``(n, C, H, W)``, ``labels`` ``(n,)``, and for each attack ``images_ATTACK`` of the same
    shape as ``clean``. ``robust_ATTACK`` says which of these rounded images are still classified correctly, and
    ``robust_before_ATTACK`` the same of the images before rounding. ``record`` says in JSON what was judged.

    Args:
        path: The file.
        record: Record of the evaluation, with the verdicts after rounding.
        clean: Rounded clean images.
        images: Rounded images of each attack.
        name: File name of the record, if it has one.

    Raises:
        UserError: If the file cannot be written.
    """
    told = {"file": name, "seed": record.seed, "threat": vars(record.threat), "about": dict(record.about)}
    arrays: dict[str, npt.NDArray[Any]] = {"clean": clean, "record": np.array(json.dumps(told))}
    if record.labels is not None:
        arrays["labels"] = record.labels
    for attack, found in images.items():
        outcome = record.attacks[attack]
        arrays |= {f"images_{attack}": found, f"robust_before_{attack}": outcome.robust}
        if outcome.rounded is not None:
            arrays[f"robust_{attack}"] = outcome.rounded
    archive = io.BytesIO()
    np.savez_compressed(archive, allow_pickle=False, **arrays)
    replace_file(path, archive.getvalue())


def holds_images_of(path: Path, name: str) -> bool:
    """Return whether a file holds the images of the record with this file name."""
    try:
        return bool(json.loads(str(load_arrays(path, ["record"])["record"]))["file"] == name)
    except (OSError, ValueError, KeyError, TypeError):
        return False
