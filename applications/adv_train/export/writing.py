"""Write a model, and check that the written model computes the same logits."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adv_train.errors import UserError
from adv_train.export.base import FORMS, Form
from adv_train.export.source import Source
from adv_train.files import make_folder

#: Batch sizes on which the written model is compared with the original.
BATCHES = (1, 5)


@dataclass(frozen=True)
class Exported:
    """The written model.

    Attributes:
        path: The file or folder.
        form: Name of the form.
        about: Description of the model: its name and arguments, data, method, epoch, versions.
        difference: Largest difference of its logits to those of the original, on random images.
        allowed: Largest allowed difference.
        size: Size in bytes.
        notes: Notes for the user.
    """

    path: Path
    form: str
    about: dict[str, Any]
    difference: float
    allowed: float
    size: int
    notes: tuple[str, ...]


def export(
    run: Path | str | nn.Module,
    out: Path | str,
    *,
    form: str,
    checkpoint: str = "best",
    force: bool = False,
    image_shape: tuple[int, int, int] | None = None,
    **options: Any,
) -> Exported:
    """Write a trained model in a form that other programs read, and compare the written model with the original.

    Args:
        run: A run folder, a checkpoint file of a run, or a module that takes images in [0, 1].
        out: The file to write; a folder for some forms.
        form: A name of `adv-train list forms`.
        checkpoint: Checkpoint of a run folder: ``"best"`` on the validation split or ``"last"``. Averaged weights are
            written if the run has them.
        force: Replace existing files at `out`.
        image_shape: ``(channels, height, width)``, for a module.
        **options: Options of the form.

    Returns:
        The written model; `.difference` is the largest difference of a logit to that of the original.

    Raises:
        UserError: If there is no such run or form, the form does not support the model, `out` exists, or the logits of
            the written model differ from those of the original. Nothing is written to `out` then.
    """
    path, chosen = Path(out), FORMS.create(form, **options)
    _check(path, chosen, form, force)
    if isinstance(run, nn.Module):
        if image_shape is None:
            raise UserError("`image_shape` is missing: give (channels, height, width) of the images of the module.")
        source = Source.of_module(run, image_shape)
    else:
        source = Source.of_run(Path(run), checkpoint)
    make_folder(path.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            notes = chosen.write(source, made)
            difference, allowed = _compare(chosen, source, made)
            size = _move(made, path)
    except OSError as error:
        raise UserError(f"Cannot write `{path}`: {error.strerror}.") from error
    return Exported(path, form, dict(source.about), difference, allowed, size, notes)


def _check(path: Path, chosen: Form, form: str, force: bool) -> None:
    if chosen.suffix and path.suffix != chosen.suffix:
        raise UserError(f"The form {form} needs a file that ends in {chosen.suffix}, but --out is `{path}`.")
    there = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if there and not force:
        raise UserError(f"`{path}` exists: give another --out, or --force to replace it.")
    if there and path.is_dir() != (chosen.suffix == ""):
        raise UserError(f"`{path}` is a {'folder' if path.is_dir() else 'file'}, but {form} does not write one.")


def _compare(chosen: Form, source: Source, made: Path) -> tuple[float, float]:
    logits = chosen.read(source, made)
    differences, sizes = [0.0], [1.0]
    for number in BATCHES:
        with torch.no_grad():
            images = source.images(number)
            expected, found = source.model(images), logits(images)
        if found.shape != expected.shape or not bool(expected.isfinite().all()):
            what = f"has logits of shape {tuple(found.shape)}" if found.shape != expected.shape else "is not finite"
            raise UserError(f"The model {what} for {number} random images, so it is not written.")
        differences.append(float((found - expected).abs().max()))
        sizes.append(float(expected.abs().max()))
    largest, allowed = max(differences), chosen.tolerance * max(sizes)
    if not all(difference <= allowed for difference in differences):
        raise UserError(
            f"The written model differs from the original: logits on random images differ by {largest:.2g}, more than "
            f"the allowed {allowed:.2g}. No file was kept."
        )
    return largest, allowed


def _move(made: Path, path: Path) -> int:
    """Move the written files to their final place, one by one; return the number of bytes."""
    files = [made] if made.is_file() else [file for file in sorted(made.rglob("*")) if file.is_file()]
    size = 0
    for file in files:
        target = path / file.relative_to(made)
        make_folder(target.parent)
        size += file.stat().st_size
        os.replace(file, target)
    return size
