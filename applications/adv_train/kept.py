"""Judging into a folder: what is judged already is not judged again, and what was interrupted goes on."""

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
    """How to judge.

    Attributes:
        threat: What the attacks may do.
        attacks: To run, at most one of a kind.
        judging: The settings of every attack.
        again: Judge anew what is judged already.
        save_images: File for the attacks' images; None saves none.
        tell: Called with a line about what is done already.
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
    """Judge a model on the test split of a data set, and write the record.

    Args:
        folder: Where the record goes.
        model: To judge.
        dataset: Its test split is judged.
        request: How.
        about: What the record says of model and images.
        of: Size of the whole test split.
        trained: What the model was trained for.

    Returns:
        The record; an earlier one where it judges the same.
    """
    if request.save_images is not None:
        evaluation.check_image_file(request.save_images)
    empty = Evaluation(request.threat, request.judging.seed, np.zeros(0, np.bool_), {}, about=about)
    records = [] if request.again else evaluation.records_of(folder)
    unfinished = Unfinished(folder, empty, records)
    attacks = named(request.attacks)
    settings = {name: attack.settings(request.threat, request.judging.batch_size) for name, attack in attacks.items()}
    if request.again:
        unfinished.forget()
    known = unfinished.whole(settings, len(dataset.test))
    if known is not None and _has_images(known, request.save_images):
        file = f"{evaluation.RECORDS_FOLDER}/{evaluation.record_name(known)}"
        request.tell(f"Judged already: {folder / file} (--again judges anew).")
        return known
    too = request.save_images is not None
    done = [name for name in attacks if unfinished.find(name, settings[name], images=too)]
    if done:
        request.tell(f"Done already, and taken over: {', '.join(done)} (--again judges anew).")
    judged, images, clean = judge(
        model,
        dataset,
        None,
        request.threat,
        request.judging,
        attacks=request.attacks,
        images_too=too,
        unfinished=unfinished,
    )
    judged = replace(judged, about=about, of=of)
    evaluation.write(judged, folder, threat=trained)
    if request.save_images is not None:
        evaluation.write_images(request.save_images, judged, clean, images, evaluation.record_name(judged))
    unfinished.forget()
    return judged


def _has_images(record: Evaluation, path: Path | None) -> bool:
    """Tell whether a record's images are where they are to be."""
    return path is None or evaluation.holds_images_of(path, evaluation.record_name(record))
