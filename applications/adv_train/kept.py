"""Evaluate a model into a folder: reuse finished evaluations, and resume interrupted ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from adv_train import evaluation
from adv_train.attacks import Attack
from adv_train.attacks.judging import Judging
from adv_train.attacks.named import named
from adv_train.data.dataset import Dataset
from adv_train.evaluation import Evaluation, Unfinished
from adv_train.judge import judge
from adv_train.threat import Threat


@dataclass(frozen=True)
class Request:
    """The settings of an evaluation.

    Attributes:
        threat: Norm and radius of the attacks, and the range of the images.
        attacks: The attacks to run, at most one of each kind.
        judging: The settings of every attack.
        again: Repeat the evaluation even if its record exists.
        save_images: File for the adversarial images; None saves none.
        tell: Called with a message about the results that are reused.
    """

    threat: Threat
    attacks: Sequence[Attack]
    judging: Judging
    again: bool
    save_images: Path | None
    tell: Callable[[str], None]


def judge_into(
    folder: Path,
    model: nn.Module,
    dataset: Dataset,
    request: Request,
    *,
    about: Mapping[str, Any],
    of: int,
    trained: Threat | None = None,
) -> Evaluation:
    """Evaluate a model on the test split of a data set, and write the record.

    Args:
        folder: Folder for the record.
        model: The model to evaluate.
        dataset: The data set; only its test split is used.
        request: The settings of the evaluation.
        about: Entries of the record that describe model and images.
        of: Size of the whole test split.
        trained: The threat that the model was trained for; None if it is not known.

    Returns:
        The record; an existing one if it belongs to the same evaluation.
    """
    if request.save_images is not None:
        evaluation.check_image_file(request.save_images)
    judging = request.judging.shared()
    ranks = judging.ranks
    empty = Evaluation(request.threat, judging.seed, np.zeros(0, np.bool_), {}, about=about)
    records = [] if request.again else evaluation.records_of(folder)
    unfinished = Unfinished(folder, empty, records)
    attacks = named(request.attacks)
    settings = {name: attack.settings(request.threat, judging.batch_size) for name, attack in attacks.items()}
    if request.again and ranks.first:
        unfinished.forget()
    ranks.wait()
    tell = request.tell if ranks.first else lambda line: None
    known = unfinished.whole(settings, len(dataset.test))
    if known is not None and _has_images(known, request.save_images):
        file = f"{evaluation.RECORDS_FOLDER}/{evaluation.record_name(known)}"
        tell(f"Already evaluated: {folder / file} (--again evaluates it again).")
        return known
    too = request.save_images is not None
    done = [name for name in attacks if unfinished.find(name, settings[name], images=too)]
    if done:
        tell(f"Reused finished attacks: {', '.join(done)} (--again runs them again).")
    judged, images, clean = judge(
        model,
        dataset,
        None,
        request.threat,
        judging,
        attacks=request.attacks,
        images_too=too,
        unfinished=unfinished,
    )
    judged = replace(judged, about=about, of=of)
    if ranks.first:
        evaluation.write(judged, folder, threat=trained)
        if request.save_images is not None:
            evaluation.write_images(request.save_images, judged, clean, images, evaluation.record_name(judged))
        unfinished.forget()
    ranks.wait()
    return judged


def _has_images(record: Evaluation, path: Path | None) -> bool:
    """Return whether the file of images, if one is wanted, holds the images of a record, which has their verdicts."""
    judged = all(outcome.rounded is not None for outcome in record.attacks.values())
    return path is None or (judged and evaluation.holds_images_of(path, evaluation.record_name(record)))
