"""Judging a model: accuracy on clean images (SA) and under attacks (RA), for any model and any images."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adv_train.attacks import ATTACKS, PGD, Attack, PGDSettings, StandardAutoAttack, Verdicts
from adv_train.attacks.judging import (
    adapted,
    check_labels,
    check_samples,
    checked,
    frozen,
    full_resolution,
    predict,
    suitable_threads,
)
from adv_train.attacks.rounding import judge_rounded, rounded
from adv_train.errors import UserError
from adv_train.evaluation import (
    Evaluation,
    Examples,
    Finished,
    Outcome,
    Unfinished,
    check_image_file,
    collapse,
    read,
    read_all,
    write,
    write_images,
)
from adv_train.ranks import Share, current, dealt
from adv_train.samples import Images, gathered, shown_examples
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

Bytes: TypeAlias = npt.NDArray[np.uint8]


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
    batch_size: int = 512,
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
        batch_size: Images in a forward pass.
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
    judged, made, clean = judge(
        model,
        images,
        labels,
        _threat(threat, eps, norm),
        attacks=attacks,
        class_names=class_names,
        files=files,
        seed=seed,
        batch_size=batch_size,
        examples=examples,
        images_too=save_images is not None,
        progress=progress,
    )
    if save_images is not None and current().first:
        write_images(Path(save_images), judged, clean, made)
    return judged


def judge(
    model: nn.Module,
    images: Images,
    labels: Tensor | None,
    threat: Threat,
    *,
    attacks: Sequence[Attack | str],
    class_names: Sequence[str] = (),
    files: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 512,
    examples: int = 6,
    images_too: bool = False,
    progress: bool | None = False,
    unfinished: Unfinished | None = None,
) -> tuple[Evaluation, dict[str, Bytes], Bytes]:
    """Judge as `evaluate` does; attacks that are done already are taken over, and each is kept when it is done.

    Args:
        model: As for `evaluate`, and so are the others.
        images: To judge.
        labels: Of them.
        threat: What the attacks may do.
        attacks: To run.
        class_names: In the order of the labels.
        files: File of each sample.
        seed: Of the attacks.
        batch_size: Images in a forward pass.
        examples: How many attacked samples to keep.
        images_too: Give back the images of the attacks, and judge them after rounding.
        progress: Show bars.
        unfinished: What is done already.

    Returns:
        The record; where they are asked for, the rounded images of each attack, and the rounded clean ones.
    """
    chosen = named(attacks)
    x, y, known, paths = gathered(model, images, labels)
    files = tuple(files) or paths
    check_samples(x, y, threat)
    if files and len(files) != len(x):
        raise UserError(f"`files` must name the file of each of the {len(x)} images, but names {len(files)}.")
    if class_names and len(class_names) <= int(y.max()):
        raise UserError(f"`class_names` holds {len(class_names)} names, but the largest label is {int(y.max())}.")
    with frozen(model), suitable_threads(model, x):
        forward = adapted(model, x)
        with torch.no_grad():
            classes = checked(forward(full_resolution(x[:1])), 1).shape[1]
            check_labels(y, classes)
        for attack in chosen.values():
            attack.check(x, classes, threat)
        before = predict(forward, full_resolution(x), batch_size)
    answers, truth = before.cpu().numpy(), y.cpu().numpy()
    if collapsed := collapse(truth, answers):
        warnings.warn(collapsed, RuntimeWarning, stacklevel=3)
    judged = Evaluation(
        threat=threat,
        seed=seed,
        clean=answers == truth,
        attacks={},
        labels=truth,
        predicted=answers,
        class_names=tuple(class_names) or known,
        files=files,
    )
    done: dict[str, Finished] = {}
    for name, attack in chosen.items():
        settings = attack.settings(threat, batch_size)
        found = unfinished.find(name, settings, images=images_too) if unfinished else None
        if found is None:
            folder = unfinished.folder(name, settings) if unfinished else None
            verdicts, said = _attacked(attack, model, x, y, threat, seed, batch_size, progress, folder)
            robust, predicted = verdicts.robust.cpu().numpy(), verdicts.predicted.cpu().numpy()
            outcome = Outcome(robust, predicted, dict(verdicts.settings), said)
            shown = shown_examples(x, verdicts, y, before, examples) if examples > 0 else None
            found = Finished(outcome, shown)
            if images_too:
                found = _rounded(found, verdicts, model, x, judged, batch_size)
            if unfinished is not None and current().first:
                unfinished.keep(name, settings, judged, found)
        done[name] = found
    kept = next((finished.examples for finished in done.values() if finished.examples is not None), None)
    outcomes = {name: finished.outcome for name, finished in done.items()}
    made = {name: finished.images for name, finished in done.items() if finished.images is not None}
    clean = rounded(full_resolution(x), threat).cpu().numpy() if images_too else np.zeros(0, np.uint8)
    return replace(judged, attacks=outcomes, examples=kept), made, clean


def _attacked(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    seed: int,
    batch_size: int,
    progress: bool | None,
    folder: Path | None,
) -> tuple[Verdicts, tuple[str, ...]]:
    """Run an attack, and give its verdicts with what it warned of, which is passed on; ranks share the samples."""
    share = Share(len(x), current())
    if len(x) < share.ranks.size:
        raise UserError(f"{share.ranks.size} processes cannot share {len(x)} images: start fewer.")
    x, y = x[share.rows], y[share.rows]
    with warnings.catch_warnings(record=True) as caught, dealt(share):
        warnings.simplefilter("always", RuntimeWarning)
        if folder is None:
            verdicts = attack(model, x, y, threat, seed=seed, batch_size=batch_size, progress=progress)
        else:
            verdicts = attack.resume(
                model, x, y, threat, folder=folder, seed=seed, batch_size=batch_size, progress=progress
            )
    for warning in caught:
        if share.ranks.first:
            warnings.warn(warning.message, warning.category, stacklevel=4)
    own = [str(found.message) for found in caught if found.category is RuntimeWarning]
    said = dict.fromkeys(text for texts in share.ranks.every(own) for text in texts)
    return _of_all(verdicts, share, attack.by_sample), tuple(said)


def _of_all(own: Verdicts, share: Share, by_sample: bool) -> Verdicts:
    """Return the verdicts on the samples of all ranks."""
    if share.alone:
        return own
    told = own.settings if by_sample else {**own.settings, "ranks": share.ranks.size}
    robust = share.whole_of(own.robust.byte()).bool()
    return Verdicts(robust, share.whole_of(own.images), share.whole_of(own.predicted), told)


def _rounded(
    found: Finished, verdicts: Verdicts, model: nn.Module, x: Tensor, judged: Evaluation, batch_size: int
) -> Finished:
    """Add the images, rounded, and the verdicts on these."""
    stored, full = rounded(verdicts.images, judged.threat), full_resolution(x)
    with frozen(model), suitable_threads(model, x):
        classes = judge_rounded(adapted(model, x), stored, full, judged.threat, batch_size).cpu().numpy()
    outcome = replace(found.outcome, rounded=judged.clean & (classes == judged.labels))
    return replace(found, outcome=outcome, images=stored.cpu().numpy())


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


def named(attacks: Sequence[Attack | str]) -> dict[str, Attack]:
    """Map names to attacks.

    Raises:
        UserError: When a name is unknown, an option is wrong, or two attacks are of a kind.
    """
    if isinstance(attacks, str):
        attacks = [attacks]
    built = [ATTACKS.read(attack, "attacks") if isinstance(attack, str) else attack for attack in attacks]
    named: dict[str, Attack] = {}
    for attack in built:
        name = ATTACKS.name_of(attack)
        if name in named:
            raise UserError(f"An evaluation holds one attack of a kind, but `{name}` is given twice: evaluate twice.")
        named[name] = attack
    return named


class _CallableModule(ModuleType):
    """Lets `adv_train.evaluate` be the function whether or not this module was imported under the same name."""

    def __call__(self, *arguments: Any, **named: Any) -> Evaluation:
        return evaluate(*arguments, **named)


sys.modules[__name__].__class__ = _CallableModule
