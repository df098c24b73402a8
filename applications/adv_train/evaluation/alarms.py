"""Warnings about failures that an accuracy can hide: collapsed predictions and catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adv_train.evaluation.chance import chance_margin

_HARDLY = 0.1
"""A class is missing if the model predicts it less often than this share of the number of its samples."""

_SAMPLES_A_CLASS = 5
"""With fewer samples per class than this, the check for missing classes is left out."""

_SAMPLES = 10
"""With fewer samples than this, the check for a constant classifier is left out too."""

_LOST = 0.5
"""An epoch that loses more than this share of the best robust accuracy so far has overfitted to its own attack."""

_HARDLY_BROKEN = 0.75
"""The model hides its gradients from one attack step if more than this share of the clean accuracy survives it."""

_SOUND = 0.1
"""An epoch is fit for a rollback if it lacks at most this share of the best robust accuracy so far."""

_CLEAN = 0.1
_OF_CLEAN = 0.25
"""An epoch keeps the clean accuracy if it lacks less than this accuracy, and less than this share of it. A model that
is inaccurate at a large budget would otherwise keep it in a bad epoch, in which the robust accuracy falls as well."""


def collapse(labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> str | None:
    """Return a warning if the predictions on clean images collapse on few classes.

    They collapse if all predictions are one class although the labels are not, or if at least half of the classes are
    (nearly) missing from them. No attack changes the predictions of a constant classifier, so its robust accuracy is
    the frequency of its class.

    Args:
        labels: True classes ``(n,)``.
        predicted: Predicted classes of the clean images ``(n,)``; -1 if the logits are not finite.

    Returns:
        A warning, or None if the predictions have not collapsed.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or len(labels) < _SAMPLES:
        return None
    answers, times = np.unique(predicted, return_counts=True)
    often = dict(zip(answers.tolist(), times.tolist(), strict=True))
    missing = [c for c, n in zip(classes.tolist(), counts.tolist(), strict=True) if often.get(c, 0) < _HARDLY * n]
    enough = len(labels) >= _SAMPLES_A_CLASS * len(classes)
    if len(answers) > 1 and not (enough and 2 * len(missing) >= len(classes)):
        return None
    if len(answers) == 1:
        told = "predicts one class for every image" if answers[0] >= 0 else "gives no finite logits for any image"
    else:
        told = f"hardly predicts {len(missing)} of the {len(classes)} classes"
    return (
        f"Collapsed predictions: the model {told}, so its robust accuracy is no evidence of robustness. "
        "Look at the accuracies of each class."
    )


def overfitting(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a warning if the records of the epochs show that training has overfitted to its own weak attack.

    An epoch has overfitted if, on the validation images, it loses half of the robust accuracy under PGD and keeps the
    clean accuracy (catastrophic overfitting: Wong, Rice and Kolter, ICLR 2020, "Fast is better than free", section
    5.1). It has also overfitted if one attack step breaks hardly any image, but PGD breaks most of those that survive
    the step. The loss must exceed `chance_margin`, and the share that PGD breaks twice this margin: the margin depends
    on the number of images, and its documentation gives the rate of false alarms. With 500 images, a fall from 8 % to 0
    raises the alarm; with 50 images, a fall from 3 % to 0 does not. Epochs that were rolled back do not count.

    Args:
        history: ``epoch``, ``val_ra``, ``val_sa`` and, if known, ``val_fgsm`` and ``val_images`` of each epoch, in
            order.

    Returns:
        A warning about the first such epoch, or None.
    """
    return next((told for _, told in _overfitted_epochs(history)), None)


def overfitted_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the number of the epoch that `overfitting` warns about, or None."""
    return next((epoch for epoch, _ in _overfitted_epochs(history)), None)


def _overfitted_epochs(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    best: Mapping[str, Any] | None = None
    for record in stayed(history):
        if (told := overfitted(record, best)) is not None:
            yield int(record["epoch"]), told
        best = record if best is None or record["val_ra"] >= best["val_ra"] else best


def stayed(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records of the epochs that were not rolled back: those whose weights the run kept."""
    return [record for record in history if "rolled_back_to" not in record]


def overfitted(record: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
    """Return a warning if an epoch has overfitted to the attack of training; see `overfitting`.

    Args:
        record: Record of the epoch.
        best: Record of the earlier epoch with the highest robust accuracy; None if there is no earlier epoch.
    """
    before = best or record
    lost = before["val_ra"] - record["val_ra"]
    margin = chance_margin(before["val_ra"], record["val_ra"], before, record)
    clean_lost = before["val_sa"] - record["val_sa"]
    if lost > max(_LOST * before["val_ra"], margin) and clean_lost < min(_CLEAN, _OF_CLEAN * before["val_sa"]):
        was, now = (f"{each['val_ra']:.1%} after epoch {each['epoch']}" for each in (before, record))
        return (
            f"Catastrophic overfitting: the robust accuracy on the validation images was {was} and {now}. "
            "The model resists the attack that it trains on, but not PGD."
        )
    one_step = record.get("val_fgsm", record["val_ra"])
    broken = one_step - record["val_ra"]
    least = max(_LOST * one_step, 2 * chance_margin(one_step, record["val_ra"], record))
    if one_step > _HARDLY_BROKEN * record["val_sa"] and broken > least:
        return (
            f"Catastrophic overfitting: after epoch {record['epoch']} the accuracy on the validation images is "
            f"{record['val_sa']:.1%}, {one_step:.1%} under one step of an attack and {record['val_ra']:.1%} under PGD. "
            "The model hides its gradients from the first step."
        )
    return None


def sound(record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether an epoch is fit for a rollback: within a tenth of the best robust accuracy, and not overfitted.

    Args:
        record: Record of the epoch.
        history: Records of the earlier epochs; those that were rolled back do not count.
    """
    best = max(stayed(history), key=lambda each: each["val_ra"], default=None)
    kept = best is None or record["val_ra"] >= (1 - _SOUND) * best["val_ra"]
    return kept and overfitted(record, best) is None
