"""Judging a model: accuracy on clean images (SA) and under attacks (RA), for any model and any images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adv_train.attacks import PGD, Attack, PGDSettings, StandardAutoAttack
from adv_train.attacks.judging import Judging
from adv_train.attacks.room import BatchSize
from adv_train.callable_module import make_callable
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation, Examples, Outcome, check_image_file, read, read_all, write, write_images
from adv_train.judge import judge
from adv_train.samples import Images
from adv_train.threat import Norm, Threat

__all__ = [
    "Evaluation",
    "Examples",
    "Images",
    "Outcome",
    "PGDSettings",
    "evaluate",
    "evaluate_model",
    "read",
    "read_all",
    "write",
]


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Tensor | None = None,
    threat: Threat | None = None,
    *,
    eps: float | None = None,
    norm: Norm = "linf",
    attacks: Sequence[Attack | str] = ("pgd", "autoattack"),
    class_names: Sequence[str] = (),
    files: Sequence[str] = (),
    seed: int = 0,
    batch_size: BatchSize = 512,
    examples: int = 6,
    save_images: Path | str | None = None,
    progress: bool | None = False,
) -> Evaluation:
    """Judge any model in eval mode, and hand it back as it was.

    On one device and thread count the outcome depends on the arguments alone; the noise of PGD is drawn on the
    CPU, so it is the same on every device. A model in half precision is attacked by images at full resolution.

    Args:
        model: Maps images to logits ``(batch, classes)``, classes >= 2, with its normalisation inside.
        images: Images ``(n, C, H, W)``, n >= 1: uint8, or floating point in the threat's range, on the model's device.
            Or, without labels: a data set of `adv_train.data.load` (its test split is judged) or one of its splits, or
            batches of images and labels, such as a `torch.utils.data.DataLoader`; these are moved to the model.
        labels: Shape ``(n,)``, int64, on the device of the images.
        threat: What the attacks may do: ``Threat("linf", 8 / 255)``.
        eps: Instead of a threat, its budget for images in [0, 1].
        norm: With ``eps``, the norm.
        attacks: Names of `adv_train.attacks.ATTACKS`, with options where they are wanted (``"pgd(steps=20)"``), or
            attacks such as ``PGD(steps=20)``; at most one of a kind. An empty sequence measures clean accuracy alone.
        class_names: In the order of the labels; by default those of the data set.
        files: File of each sample, for the record.
        seed: Of the attacks.
        batch_size: Images in a forward pass; ``"auto"`` takes as many as memory holds, found by trying.
        examples: How many attacked samples to keep for looking at.
        save_images: File for the attacks' images, ``.npz``, rounded to 8 bits and judged once more after that; see
            `adv_train.evaluation.write_images` for what it holds.
        progress: Show bars; ``None`` shows them on a terminal only.

    Returns:
        Per-sample outcomes and what follows from them: ``.sa``, ``.ra_pgd``, ``.ra_aa``, ``.attacks["pgd"].robust``,
        ``.per_class()``, ``.warnings``.

    Warns:
        RuntimeWarning: When the predictions collapse on few classes, or an attack finds that its verdict overstates
            robustness. The record keeps these warnings.

    Where `torch.distributed` is initialised, all processes call it together: each attacks its part of the images, and
    all get the outcome; the first one writes.

    Raises:
        UserError: When an argument is out of range or shape.
        RuntimeError: When an attack leaves its budget.
    """
    if save_images is not None:
        check_image_file(Path(save_images))
    judging = Judging.of(seed, batch_size, progress).shared()
    judged, made, clean = judge(
        model,
        images,
        labels,
        _threat(threat, eps, norm),
        judging,
        attacks=attacks,
        class_names=class_names,
        files=files,
        examples=examples,
        images_too=save_images is not None,
    )
    if save_images is not None and judging.ranks.first:
        write_images(Path(save_images), judged, clean, made)
    return judged


def _threat(threat: Threat | None, eps: float | None, norm: Norm) -> Threat:
    """Give the threat, however it was said."""
    if (threat is None) == (eps is None):
        raise UserError("Say what the attacks may do, by `threat` or by `eps`: `eps=8 / 255`, for one.")
    return Threat(norm, eps or 0.0) if threat is None else threat


def evaluate_model(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    pgd: PGD | None = PGD(),  # noqa: B008  # Frozen, so sharing the default is safe.
    autoattack: bool = True,
    **others: Any,
) -> Evaluation:
    """Judge a model on images in [0, 1] by PGD and AutoAttack in the maximum norm: `evaluate`, in fewer words.

    Args:
        model: As for `evaluate`, and so are the next two.
        images: In [0, 1], or uint8.
        labels: One an image.
        eps: Radius of the attacks.
        pgd: How hard PGD tries; ``None`` leaves it out.
        autoattack: Run standard AutoAttack, the costly part.
        **others: Further arguments of `evaluate`.
    """
    chosen = [*([] if pgd is None else [pgd]), *([StandardAutoAttack()] if autoattack else [])]
    return evaluate(model, images, labels, Threat("linf", eps), attacks=chosen, **others)


make_callable(__name__)
