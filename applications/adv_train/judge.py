"""Measure clean accuracy and run the attacks one by one; the results of finished attacks are reused."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adv_train.attacks import Attack, Verdicts
from adv_train.attacks.checks import check_labels, check_samples, checked
from adv_train.attacks.judging import Judging, adapted, frozen, full_resolution, predict, suitable_threads
from adv_train.attacks.named import named
from adv_train.attacks.rounding import judge_rounded, rounded
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation, Finished, Outcome, Unfinished, collapse
from adv_train.samples import Images, gathered, shown_examples
from adv_train.threat import Threat

Bytes: TypeAlias = npt.NDArray[np.uint8]


def judge(
    model: nn.Module,
    images: Images,
    labels: Tensor | None,
    threat: Threat,
    judging: Judging,
    *,
    attacks: Sequence[Attack | str],
    class_names: Sequence[str] = (),
    files: Sequence[str] = (),
    examples: int = 6,
    images_too: bool = False,
    unfinished: Unfinished | None = None,
) -> tuple[Evaluation, dict[str, Bytes], Bytes]:
    """Evaluate a model as `evaluate` does; reuse finished attacks, and store each attack as soon as it is finished.

    Args:
        model: The model, as for `evaluate`.
        images: The images, as for `evaluate`.
        labels: The labels, as for `evaluate`.
        threat: The threat of the attacks.
        judging: The settings of every attack.
        attacks: The attacks to run, at most one of each kind.
        class_names: Names of the classes, in the order of the labels.
        files: File of each sample.
        examples: Number of attacked samples to keep as examples.
        images_too: Round the adversarial images, evaluate the model on them, and return them.
        unfinished: The finished attacks of an interrupted evaluation; None reuses and stores nothing.

    Returns:
        The record; with `images_too` also the rounded images of each attack, and the rounded clean images.
    """
    chosen = named(attacks)
    x, y, known, paths = gathered(model, images, labels, threat)
    files = tuple(files) or paths
    check_samples(x, y, threat)
    if files and len(files) != len(x):
        raise UserError(f"`files` must name the file of each of the {len(x)} images, but names {len(files)}.")
    if class_names and len(class_names) <= int(y.max()):
        raise UserError(f"`class_names` holds {len(class_names)} names, but the largest label is {int(y.max())}.")
    with frozen(model), suitable_threads(model, x):
        forward, size = judging.fitted(adapted(model, x), full_resolution(x))
        with torch.no_grad():
            classes = checked(forward(full_resolution(x[:1])), 1).shape[1]
            check_labels(y, classes)
        for attack in chosen.values():
            attack.check(x, classes, threat)
        before = predict(forward, full_resolution(x), size)
    answers, truth = before.cpu().numpy(), y.cpu().numpy()
    if judging.ranks.first and (collapsed := collapse(truth, answers)):
        warnings.warn(collapsed, RuntimeWarning, stacklevel=3)
    judged = Evaluation(
        threat=threat,
        seed=judging.seed,
        clean=answers == truth,
        attacks={},
        labels=truth,
        predicted=answers,
        class_names=tuple(class_names) or known,
        files=files,
    )
    settings = {name: attack.settings(threat, judging.batch_size) for name, attack in chosen.items()}
    kept = {name: unfinished.find(name, settings[name], images=images_too) for name in chosen} if unfinished else {}
    # Only now may the first rank store a new attack: all ranks must have found the same finished ones.
    judging.ranks.wait()
    done: dict[str, Finished] = {}
    for name, attack in chosen.items():
        found = kept.get(name)
        if found is None:
            folder = unfinished.folder(name, settings[name]) if unfinished else None
            verdicts, said = _attacked(attack, model, x, y, threat, judging, folder)
            robust, predicted = verdicts.robust.cpu().numpy(), verdicts.predicted.cpu().numpy()
            outcome = Outcome(robust, predicted, dict(verdicts.settings), said)
            found = Finished(outcome, shown_examples(x, verdicts, y, before, examples) if examples > 0 else None)
            if images_too:
                found = _rounded(found, verdicts, model, x, judged, judging)
            if unfinished is not None and judging.ranks.first:
                unfinished.keep(name, settings[name], judged, found)
        done[name] = found
    shown = next((finished.examples for finished in done.values() if finished.examples is not None), None)
    outcomes = {name: finished.outcome for name, finished in done.items()}
    made = {name: finished.images for name, finished in done.items() if finished.images is not None}
    clean = rounded(full_resolution(x), threat).cpu().numpy() if images_too else np.zeros(0, np.uint8)
    return replace(judged, attacks=outcomes, examples=shown), made, clean


def _attacked(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, judging: Judging, folder: Path | None
) -> tuple[Verdicts, tuple[str, ...]]:
    """Run an attack, emit its warnings again, and return its verdicts and the texts of the warnings of all ranks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        if folder is None:
            verdicts = attack.judge(model, x, y, threat, judging)
        else:
            verdicts = attack.resume(model, x, y, threat, judging, folder)
    for warning in caught if judging.ranks.first else ():
        warnings.warn(warning.message, warning.category, stacklevel=4)
    said = [str(found.message) for found in caught if found.category is RuntimeWarning]
    return verdicts, tuple(dict.fromkeys(text for texts in judging.ranks.every(said) for text in texts))


def _rounded(
    found: Finished, verdicts: Verdicts, model: nn.Module, x: Tensor, judged: Evaluation, judging: Judging
) -> Finished:
    """Return the finished attack with its rounded images and the verdicts on them."""
    stored, full = rounded(verdicts.images, judged.threat), full_resolution(x)
    with frozen(model), suitable_threads(model, x):
        forward, size = judging.fitted(adapted(model, x), full)
        classes = judge_rounded(forward, stored, full, judged.threat, size).cpu().numpy()
    outcome = replace(found.outcome, rounded=judged.clean & (classes == judged.labels))
    return replace(found, outcome=outcome, images=stored.cpu().numpy())
