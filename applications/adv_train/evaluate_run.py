"""Judging what is in a run folder or a file of weights, and gathering what was measured of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from adv_train import data, evaluation, models
from adv_train.attacks import ATTACKS, PGD, Attack, StandardAutoAttack
from adv_train.bench import step_cost
from adv_train.devices import find_device
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation
from adv_train.files import make_folder
from adv_train.judged_data import check_fits, cut, origin
from adv_train.kept import Request, judge_into
from adv_train.loading import build_model, load_checkpoint, load_data, load_source
from adv_train.ranks import current
from adv_train.records import RunFolder
from adv_train.report import RunSummary
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
    seed: int = 0,
    batch_size: int = 512,
    device: str | None = None,
    data_name: str | None = None,
    data_root: str | None = None,
    again: bool = False,
    save_images: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
    progress: bool | None = None,
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
        seed: Of the attacks.
        batch_size: Images in a forward pass.
        device: Where to judge; by default the fastest there is.
        data_name: Where an image folder is now, as ``imagefolder:PATH``.
        data_root: Folder of the data sets; by default the one that the run was trained from.
        again: Judge anew what is judged already.
        save_images: File for the attacks' images, as for `adv_train.evaluate`.
        tell: Called with a line about what is done already.
        progress: Show bars; ``None`` shows them on a terminal only.

    Raises:
        UserError: When the run, its data or an argument cannot be used.
    """
    run = RunFolder(path)
    saved = load_checkpoint(run, which)
    config = saved.config
    check_classes(attacks, saved.model_arguments["classes"])
    threat = _threat(config.threat, norm, eps)
    where = current().device(find_device(device or "auto"))
    kind, _, place = (data_name or config.data.name).partition(":")
    if kind != config.data.name.partition(":")[0]:
        raise UserError(f"The run was trained on {config.data.name}, so it is not judged on {data_name}.")
    with current().in_turn():
        dataset = load_data(config, run.split(), root=data_root, path=place if data_name and place else None)
    run.check_split(dataset)
    check_fits(dataset, dict(saved.model_arguments), data_name or config.data.name)
    of, dataset = len(dataset.test), cut(dataset, limit, where)
    model = build_model(saved).to(where)
    about = {
        "checkpoint": run.best.name if which == "best" else run.last.name,
        "epoch": saved.epoch,
        "method": config.method_name,
        **({"averaged": saved.averaged} if saved.averaged else {}),
        **origin(model, dataset, where),
    }
    request = Request(threat, _bound(attacks, dataset, where), seed, batch_size, again, save_images, tell, progress)
    return judge_into(path, model, dataset, request, about=about, of=of, trained=config.threat)


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
    seed: int = 0,
    batch_size: int = 512,
    device: str | None = None,
    data_root: str = "data",
    again: bool = False,
    save_images: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
    progress: bool | None = None,
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
        seed: Of the attacks.
        batch_size: Images in a forward pass.
        device: Where to judge.
        data_root: Folder of the data sets.
        again: Judge anew what is judged already.
        save_images: File for the attacks' images.
        tell: Called with a line about what is done already.
        progress: Show bars.

    Raises:
        UserError: When the model, its weights, the data or an argument cannot be used.
    """
    where = current().device(find_device(device or "auto"))
    with current().in_turn():
        dataset = data.load(data_name, root=data_root)
    of, dataset = len(dataset.test), cut(dataset, limit, where)
    arguments: dict[str, Any] = dataset.model_arguments()
    name, options = (model_name, {}) if ":" in model_name else models.MODELS.parsed(model_name, "model")
    model = models.create(name, **arguments, seed=0, **options)
    if weights is not None:
        models.load_weights(model, weights, normalisation)
    model = model.to(where).eval()
    about: dict[str, Any] = {"checkpoint": weights.name if weights else model_name, "model": model_name}
    about |= origin(model, dataset, where)
    chosen = _bound(attacks, dataset, where)
    request = Request(Threat(norm, eps), chosen, seed, batch_size, again, save_images, tell, progress)
    make_folder(out)
    return judge_into(out, model, dataset, request, about=about, of=of)


def summarise(path: Path, name: str | None = None) -> RunSummary:
    """Gather the configuration, records, evaluations and cost of a run for tables and reports.

    The evaluation shown is the one that stands for the run, see `adv_train.evaluation.headline`.

    Args:
        path: A run folder that was evaluated.
        name: What to call the run; by default its method.

    Raises:
        UserError: When the folder holds no run or no evaluation.
    """
    run = RunFolder(path)
    config = run.config()
    records = evaluation.read_all(path)
    outcome = evaluation.headline(records, config.threat)
    metrics = run.metrics()
    saved = load_checkpoint(run)
    seconds = [line["train_seconds"] for line in run.timing()]
    shares = [line["implicit_share"] for line in metrics if line["implicit_share"]]
    return RunSummary(
        name=name or config.method_name,
        config=config.to_mapping(),
        evaluation=outcome.summary(),
        records=[record.summary() for record in records],
        class_names=outcome.class_names,
        metrics=metrics,
        seconds_per_epoch=sum(seconds) / len(seconds) if seconds else None,
        forward_equivalents=step_cost(saved.config, saved.model_arguments),
        implicit_share=sum(shares) / len(shares) if shares else None,
        examples=outcome.examples,
    )


def summarise_record(outcome: Evaluation, name: str) -> RunSummary:
    """Gather what a record alone tells, of a model that was not trained here.

    Args:
        outcome: The record.
        name: What to call the model.
    """
    summary = outcome.summary()
    config = dict(outcome.about)
    return RunSummary(
        name,
        config=config,
        evaluation=summary,
        records=[summary],
        class_names=outcome.class_names,
        metrics=(),
        examples=outcome.examples,
    )


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
