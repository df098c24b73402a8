"""What an accuracy can hide: an answer of few classes, whatever is shown, and an epoch that lost the robustness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_HARDLY = 0.1
"""A class is missing from the predictions when they name it less often than this share of its samples."""

_SAMPLES_A_CLASS = 5
"""Fewer samples a class than this tell nothing of which classes are missing."""

_SAMPLES = 10
"""Fewer samples than this tell nothing of a constant classifier either."""

_LOST = 0.5
"""Share of the best robust accuracy so far that is lost when training overfits to its own attack."""

_HARDLY_BROKEN = 0.75
"""Share of the clean accuracy that survives one step of an attack where the model hides its gradients from it."""

_SOUND = 0.1
"""Share of the best robust accuracy so far that an epoch to go back to may lack."""

_MARGIN = 0.1
"""Accuracies that differ by less than this, over validation images, may do so by chance."""


def collapse(labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> str | None:
    """Say so when the predictions on clean images collapse on few classes.

    They do when all are one class though the labels are not, or when half of the classes or more are (nearly) missing
    from them. A constant classifier cannot be attacked, so it is as robust as its class is frequent.

    Args:
        labels: True classes ``(n,)``.
        predicted: Predicted classes of the clean images ``(n,)``; -1 is no class.

    Returns:
        A sentence, or None where nothing collapsed.
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
        f"Collapsed predictions: the model {told}, so that its robust accuracy is no robustness. "
        "Look at the accuracies of each class."
    )


def overfitting(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Say so when training has overfitted to its own weak attack, as the records of its epochs show.

    It has when an epoch loses half of the robust accuracy under PGD, on the validation images, and keeps the clean one
    (Wong, Rice and Kolter, ICLR 2020, "Fast is better than free", section 5.1: catastrophic overfitting); or when one
    step of an attack breaks hardly anything and PGD breaks most of the rest. An epoch that was rolled back is left out.

    Args:
        history: ``epoch``, ``val_ra``, ``val_sa`` and, where it is known, ``val_fgsm`` of each epoch, the first one
            first.

    Returns:
        A sentence about the first such epoch, or None.
    """
    return next((told for _, told in _overfitted_epochs(history)), None)


def overfitted_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Give the epoch that `overfitting` tells of, or None."""
    return next((epoch for epoch, _ in _overfitted_epochs(history)), None)


def _overfitted_epochs(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    best: Mapping[str, Any] | None = None
    for record in history:
        if "rolled_back_to" in record:
            continue
        if (told := overfitted(record, best)) is not None:
            yield int(record["epoch"]), told
        best = record if best is None or record["val_ra"] >= best["val_ra"] else best


def overfitted(record: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
    """Say so when an epoch has overfitted to the attack of training; see `overfitting`.

    Args:
        record: Of the epoch.
        best: Of the epoch before it with the highest robust accuracy.
    """
    before = best or record
    lost = before["val_ra"] - record["val_ra"]
    if lost > max(_LOST * before["val_ra"], _MARGIN) and record["val_sa"] > before["val_sa"] - _MARGIN:
        was, now = (f"{each['val_ra']:.1%} after epoch {each['epoch']}" for each in (before, record))
        return (
            f"Catastrophic overfitting: the robust accuracy on the validation images was {was} and {now}. "
            "The model resists the attack that it trains on and not PGD."
        )
    one_step = record.get("val_fgsm", record["val_ra"])
    broken = one_step - record["val_ra"]
    if one_step > _HARDLY_BROKEN * record["val_sa"] and broken > max(_LOST * one_step, 2 * _MARGIN):
        return (
            f"Catastrophic overfitting: after epoch {record['epoch']} the accuracy on the validation images is "
            f"{record['val_sa']:.1%}, {one_step:.1%} under one step of an attack and {record['val_ra']:.1%} under PGD. "
            "The model hides its gradients from the first step."
        )
    return None


def sound(record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an epoch is one to go back to: within a tenth of the best robust accuracy so far, and not overfitted."""
    best = max(history, key=lambda each: each["val_ra"], default=None)
    kept = best is None or record["val_ra"] >= (1 - _SOUND) * best["val_ra"]
    return kept and overfitted(record, best) is None
