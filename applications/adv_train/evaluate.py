"""Evaluation of any model on any images: standard accuracy (SA) and robust accuracy under attacks (RA)."""

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
    """Evaluate any model in eval mode; its state is the same afterwards.

    On one device and with one thread count, the result depends on the arguments alone. The noise of PGD is drawn on the
    CPU, so it is the same on every device. If the model is in half precision, the attacks keep the images in full
    resolution.

    If `torch.distributed` is initialised, all processes must call this function together: each attacks its part of the
    images, all return the same result, and the first process writes.

    Args:
        model: Maps images to logits ``(batch, classes)``, classes >= 2, with its normalisation inside.
        images: Images ``(n, C, H, W)``, n >= 1, on the model's device: floating point in the threat's range, or uint8,
            whose values 0 to 255 span that range.
            Or, without labels: a data set of `adv_train.data.load`, whose test split is used, or one of its splits; or
            batches of images and labels, such as a `torch.utils.data.DataLoader`, which are moved to the model's
            device.
        labels: Labels, shape ``(n,)``, int64, on the device of the images.
        threat: The threat of the attacks, such as ``Threat("linf", 8 / 255)``.
        eps: Instead of ``threat``, its budget, for images in [0, 1].
        norm: With ``eps``, the norm.
        attacks: Names of `adv_train.attacks.ATTACKS`, if need be with options (``"pgd(steps=20)"``), or attacks such as
            ``PGD(steps=20)``; at most one of each kind. An empty sequence measures clean accuracy alone.
        class_names: Names of the classes in the order of the labels; by default those of the data set.
        files: File of each sample, for the record.
        seed: Seed of the attacks.
        batch_size: Number of images in a forward pass; ``"auto"`` takes as many as memory holds, found by trial.
        examples: Number of attacked samples that the record keeps as examples.
        save_images: ``.npz`` file for the attacks' images, which are rounded to 8 bits and classified once more; see
            `adv_train.evaluation.write_images` for its content.
        progress: Show bars; ``None`` shows them on a terminal only.

    Returns:
        The outcome for each sample, and figures: ``.sa``, ``.ra_pgd``, ``.ra_aa``, ``.attacks["pgd"].robust``,
        ``.per_class()``, ``.warnings``.

    Warns:
        RuntimeWarning: If the predictions collapse on few classes, or an attack finds that its verdict overstates
            robustness. The record keeps these warnings.

    Raises:
        UserError: If an argument has the wrong range or shape.
        RuntimeError: If an attack leaves its budget.
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
    """Return the threat, given by itself or by its budget and norm."""
    if (threat is None) == (eps is None):
        raise UserError("Set the budget of the attacks either by `threat` or by `eps`, for instance `eps=8 / 255`.")
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
    """Evaluate a model on images in [0, 1] by PGD and AutoAttack in the maximum norm: a short form of `evaluate`.

    Args:
        model: The model, as for `evaluate`.
        images: Images in [0, 1], or uint8.
        labels: One label per image.
        eps: Radius of the attacks.
        pgd: PGD with its settings; ``None`` leaves it out.
        autoattack: Run standard AutoAttack, which takes most of the time.
        **others: Further arguments of `evaluate`.
    """
    chosen = [*([] if pgd is None else [pgd]), *([StandardAutoAttack()] if autoattack else [])]
    return evaluate(model, images, labels, Threat("linf", eps), attacks=chosen, **others)


make_callable(__name__)
