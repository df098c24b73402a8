"""Judging what is in a run folder or a file of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from adv_train import data
from adv_train.attacks import ATTACKS, PGD, Attack, StandardAutoAttack
from adv_train.attacks.judging import Judging
from adv_train.devices import find_device
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
    """Judge a model of a run on the test split of its data, and write a record beside those that the run has.

    What is judged already is not judged again: a record of the same weights, images, attacks, seed, device and versions
    is given back, and attacks of an evaluation that was interrupted are taken over.

    Args:
        path: The run folder.
        which: Which checkpoint, ``"best"`` or ``"last"``.
        attacks: Those to run.
        norm: Of the attacks; by default that of training.
        eps: Budget in the norm; by default that of training, if the norm is.
        limit: Judge only so many test images, of all classes in proportion.
        judging: The settings of every attack.
        device: Where to judge; by default the fastest there is.
        data_name: Where an image folder is now, as ``imagefolder:PATH``.
        data_root: Folder of the data sets; by default the one that the run was trained from.
        again: Judge anew what is judged already.
        save_images: File for the attacks' images, as for `adv_train.evaluate`.
        tell: Called with a line about what is done already.

    Raises:
        UserError: When the run, its data or an argument cannot be used.
    """
    saved = load_checkpoint(RunFolder(path), which)
    check_classes(attacks, saved.model_arguments["classes"])
    threat = _threat(saved.config.threat, norm, eps)
    opened = open_run(path, which, device=device, data_name=data_name, data_root=data_root)
    where, model = find_device(device or "auto"), opened.model
    of, dataset = len(opened.dataset.test), cut(opened.dataset, limit, where)
    about = {**opened.about, **origin(model, dataset, where)}
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
    """Judge a model that was not trained here, and write a record.

    Args:
        model_name: A name of `adv_train.models.MODELS.names()`, with options where they are wanted, such as
            ``wrn-28-10(activation=silu)``; ``torchvision:NETWORK``, or ``package.module:factory``.
        data_name: The data set whose test split it is judged on.
        out: Folder of the record; made where it does not exist.
        weights: File of the weights; None where the factory brings them.
        normalisation: For weights without mean and standard deviation, as in `adv_train.models.load_weights`.
        norm: Of the attacks.
        eps: Budget in the norm.
        attacks: As for `evaluate_run`, and so are the others.
        limit: Judge only so many test images.
        judging: The settings of every attack.
        device: Where to judge.
        data_root: Folder of the data sets.
        again: Judge anew what is judged already.
        save_images: File for the attacks' images.
        tell: Called with a line about what is done already.

    Raises:
        UserError: When the model, its weights, the data or an argument cannot be used.
    """
    opened = open_weights(
        model_name, data_name, weights=weights, normalisation=normalisation, device=device, data_root=data_root
    )
    where, model = find_device(device or "auto"), opened.model
    of, dataset = len(opened.dataset.test), cut(opened.dataset, limit, where)
    about = {**opened.about, **origin(model, dataset, where)}
    request = Request(Threat(norm, eps), _bound(attacks, dataset, where), judging, again, save_images, tell)
    make_folder(out)
    return judge_into(out, model, dataset, request, about=about, of=of)


def _threat(trained: Threat, norm: Norm | None, eps: float | None) -> Threat:
    """Return what the attacks may do: what they might in training, if nothing else is said."""
    if norm not in (None, trained.norm) and eps is None:
        raise UserError(f"The run was trained in {trained.norm}: give --eps NUMBER to judge it in {norm}.")
    return replace(trained, norm=norm or trained.norm, eps=trained.eps if eps is None else eps)


def check_classes(attacks: Sequence[Attack], classes: int) -> None:
    """Refuse an attack that cannot judge so few classes.

    Raises:
        UserError: When AutoAttack would, or another whose loss compares several logits.
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
    """Load the models that attacks name, and refuse those of other data."""
    arguments = dict(dataset.model_arguments())
    return [attack.bound(lambda source: load_source(source, arguments, dataset.name, device)) for attack in attacks]
