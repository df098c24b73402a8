"""Writing a model, and making sure that what was written is that model."""

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

#: Numbers of images on which what was written is compared with the model.
BATCHES = (1, 5)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file or folder.
        form: Its name.
        about: What is known of the model: its name and arguments, data, method, epoch, versions.
        difference: Largest difference of a logit of random images from the model's.
        allowed: How large it might have been.
        size: In bytes.
        notes: What else to know of it.
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
    """Write a trained model in a form that others read, and compare what was written with the model.

    Args:
        run: A run folder, a checkpoint file of a run, or a module on images in [0, 1].
        out: The file, or for some forms the folder, to write.
        form: A name of `adv-train list forms`.
        checkpoint: Of a run folder, ``"best"`` on the validation split or ``"last"``. Weights are the averaged ones
            where the run has them.
        force: Replace what is at `out`.
        image_shape: ``(channels, height, width)``, for a module.
        **options: Of the form.

    Returns:
        What was written; `.difference` is the largest difference of a logit.

    Raises:
        UserError: When there is no such run or form, the form cannot hold the model, `out` exists, or the logits of
            what was written are not those of the model; nothing is then left at `out`.
    """
    path, chosen = Path(out), FORMS.create(form, **options)
    _check(path, chosen, form, force)
    if isinstance(run, nn.Module):
        if image_shape is None:
            raise UserError("`image_shape` is missing: say (channels, height, width) of the images of the module.")
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
        raise UserError(f"The form {form} writes a file that ends in {chosen.suffix}, but --out is `{path}`.")
    there = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if there and not force:
        raise UserError(f"`{path}` exists: give another --out, or --force to replace it.")
    if there and path.is_dir() != (chosen.suffix == ""):
        raise UserError(f"`{path}` is a {'folder' if path.is_dir() else 'file'}, which the form {form} is not.")


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
            f"What was written is not the model: logits of random images differ by {largest:.2g}, more than the "
            f"{allowed:.2g} that are allowed. Nothing was kept."
        )
    return largest, allowed


def _move(made: Path, path: Path) -> int:
    """Put what was written in its place, file by file; returns the number of bytes."""
    files = [made] if made.is_file() else [file for file in sorted(made.rglob("*")) if file.is_file()]
    size = 0
    for file in files:
        target = path / file.relative_to(made)
        make_folder(target.parent)
        size += file.stat().st_size
        os.replace(file, target)
    return size
