"""What a good accuracy can hide: a classifier that answers with few classes, whatever it is shown."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_HARDLY = 0.1
"""A class is missing from the predictions when they name it less often than this share of its samples."""

_SAMPLES_A_CLASS = 5
"""Fewer samples a class than this tell nothing of which classes are missing."""

_SAMPLES = 10
"""Fewer samples than this tell nothing of a constant classifier either."""


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
