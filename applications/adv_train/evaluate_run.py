"""Evaluation of a run folder or of a file of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from adv_train import data
from adv_train.attacks import ATTACKS, PGD, Attack, StandardAutoAttack
from adv_train.attacks.judging import Judging
from adv_train.devices import own_device
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation
from adv_train.files import make_folder
from adv_train.judged_data import cut, origin
from adv_train.kept import Request, judge_into
from adv_train.loading import load_checkpoint, load_source
from adv_train.opened import open_run, open_weights
from adv_train.records import RunFolder
from adv_train.threat import Norm, Threat

STANDARD: tuple[Attack, ...] = (PGD(), StandardAutoAttack())


def evaluate_run(
    path: Path,
    *,
    which: str = "best",
    attacks: Sequence[Attack] = STANDARD,
    norm: Norm | None = None,
    eps: float | None = None,
    limit: int | None = None,
    judging: Judging = Judging(progress=None),
    device: str | None = None,
    data_name: str | None = None,
    data_root: str | None = None,
    again: bool = False,
    save_images: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Evaluate a model of a run on the test split of its data, and write a record beside the earlier ones.

    No attack runs twice. If the run has a record of the same weights, images, attacks, seed, device and versions, it is
    returned. If such an evaluation was interrupted, its finished attacks are reused.

    Args:
        path: The run folder.
        which: Which checkpoint, ``"best"`` or ``"last"``.
        attacks: The attacks to run.
        norm: Norm of the attacks; by default that of training.
        eps: Budget of the attacks; by default that of training, if the norm is that of training.
        limit: Number of test images to use, of all classes in proportion; by default all.
        judging: The settings of every attack.
        device: The device to use; by default the fastest one.
        data_name: New path of an image folder that has moved, as ``imagefolder:PATH``.
        data_root: Folder of the data sets; by default the one used in training.
        again: Run all attacks, even if there is a record or a finished attack.
        save_images: File for the attacks' images, as for `adv_train.evaluate`.
        tell: Called with one line of text about finished attacks that are reused.

    Raises:
        UserError: If the run, its data or an argument cannot be used.
    """
    saved = load_checkpoint(RunFolder(path), which)
    check_classes(attacks, saved.model_arguments["classes"])
    threat = _threat(saved.config.threat, norm, eps)
    opened = open_run(path, which, device=device, data_name=data_name, data_root=data_root)
    where, model = own_device(device or "auto"), opened.model
    of, dataset = len(opened.dataset.test), cut(opened.dataset, limit, where)
    about = {**opened.about, **origin(model, saved.config.model.name, dataset, where)}
    request = Request(threat, _bound(attacks, dataset, where), judging, again, save_images, tell)
    return judge_into(path, model, dataset, request, about=about, of=of, trained=opened.trained)


def evaluate_weights(
    model_name: str,
    data_name: str,
    out: Path,
    *,
    weights: Path | None = None,
    normalisation: Literal["data", "none"] | None = None,
    norm: Norm = "linf",
    eps: float,
    attacks: Sequence[Attack] = STANDARD,
    limit: int | None = None,
    judging: Judging = Judging(progress=None),
    device: str | None = None,
    data_root: str = "data",
    again: bool = False,
    save_images: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Evaluate a model that `adv-train` has not trained, and write a record.

    Args:
        model_name: A name of `adv_train.models.MODELS.names()`, if need be with options, such as
            ``wrn-28-10(activation=silu)``; ``torchvision:NETWORK``, or ``package.module:factory``.
        data_name: The data set whose test split is used.
        out: Folder of the record; it is made if it does not exist.
        weights: File of the weights; None if the factory returns a model with its weights.
        normalisation: For weights without mean and standard deviation, as in `adv_train.models.load_weights`.
        norm: Norm of the attacks.
        eps: Budget of the attacks.
        attacks: The attacks to run. This and all further arguments are as for `evaluate_run`.
        limit: Number of test images to use.
        judging: The settings of every attack.
        device: The device to use.
        data_root: Folder of the data sets.
        again: Run all attacks, even if there is a record or a finished attack.
        save_images: File for the attacks' images.
        tell: Called with one line of text about finished attacks that are reused.

    Raises:
        UserError: If the model, its weights, the data or an argument cannot be used.
    """
    opened = open_weights(
        model_name, data_name, weights=weights, normalisation=normalisation, device=device, data_root=data_root
    )
    where, model = own_device(device or "auto"), opened.model
    of, dataset = len(opened.dataset.test), cut(opened.dataset, limit, where)
    about = {**opened.about, **origin(model, model_name, dataset, where)}
    request = Request(Threat(norm, eps), _bound(attacks, dataset, where), judging, again, save_images, tell)
    make_folder(out)
    return judge_into(out, model, dataset, request, about=about, of=of)


def _threat(trained: Threat, norm: Norm | None, eps: float | None) -> Threat:
    """Return the threat of the attacks: that of training, with the norm and the eps given."""
    if norm not in (None, trained.norm) and eps is None:
        raise UserError(f"The run was trained in {trained.norm}: give --eps NUMBER to evaluate it in {norm}.")
    return replace(trained, norm=norm or trained.norm, eps=trained.eps if eps is None else eps)


def check_classes(attacks: Sequence[Attack], classes: int) -> None:
    """Check that every attack is defined for so many classes.

    Raises:
        UserError: If AutoAttack, or another attack whose loss compares several logits, needs more classes.
    """
    for attack in attacks:
        if classes < attack.least_classes:
            name = ATTACKS.name_of(attack)
            instead = "add --no-autoattack" if name == "autoattack" else "leave it out"
            title = "AutoAttack" if name == "autoattack" else f"`{name}`"
            raise UserError(
                f"{title} compares {attack.least_classes} logits, but the model has {classes} classes: {instead}."
            )


def _bound(attacks: Sequence[Attack], dataset: data.Dataset, device: torch.device) -> list[Attack]:
    """Load the models that the attacks name, after checking that these were trained on data of the same form."""
    return [attack.bound(lambda source: load_source(source, dataset, device)) for attack in attacks]
