"""Normalisation that is missing inside the model, or applied to the images before it."""

from __future__ import annotations

import torch
from torch import Tensor

from adv_train.doctor.base import CHECKS, Finding, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.significance import more

_GAIN = 0.1
"""Gain of accuracy by another scale of the images that raises an alarm."""

_OUTSIDE = (
    "Give the doctor and the attacks images in [0, 1], and put the normalisation inside the model, before its first "
    "layer."
)


@CHECKS.register("normalisation")
def normalisation(patient: Patient) -> Finding:
    """Is the model far more accurate on images of another scale than [0, 1]?"""
    x, y = patient.x, patient.y
    low, high = float(x.min()), float(x.max())
    if not 0 <= low <= high <= 1:
        return ill(f"the images span [{low:.3g}, {high:.3g}], not [0, 1]", _OUTSIDE, low=low, high=high)
    right = patient.right
    others = {name: patient.predict(images) == y for name, images in _scales(patient).items()}
    best = max(others.values(), key=lambda flags: int(flags.sum()))
    shares = {name: float(flags.double().mean()) for name, flags in others.items()}
    ours, theirs = float(right.double().mean()), max(shares.values())
    # The scales that are not significantly worse than the best: [-1, 1] is nearly the same as normalisation if mean and
    # standard deviation are nearly 1/2.
    good = [name for name, flags in others.items() if not more(best, flags)]
    told = ", ".join(f"{shares[name]:.1%} on images {name}" for name in good)
    seen = f"accuracy {ours:.1%} on images in [0, 1], {told}, n = {len(y)}"
    figures = {"accuracy": ours, **shares}
    if theirs - ours < _GAIN or theirs < _knowing(y) or not more(best, right):
        return well(seen, **figures)
    return ill(
        seen,
        f"The model was trained on images {' or '.join(good)}: put this conversion inside the model, before its first "
        "layer. Then it takes images in [0, 1], and eps is in their unit (for a file of weights: `--normalisation "
        "data`).",
        **figures,
    )


def _scales(patient: Patient) -> dict[str, Tensor]:
    """Return the images in other usual scales."""
    x = patient.x
    mean, std = patient.statistics or (x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).tolist())
    centre, width = (torch.tensor(each, dtype=x.dtype, device=x.device).view(-1, 1, 1) for each in (mean, std))
    return {
        "normalised with mean and std": (x - centre) / width.clamp(min=1 / 255),
        "in [-1, 1]": 2 * x - 1,
        "in 0..255": 255 * x,
    }


def _knowing(y: Tensor) -> float:
    """Return an accuracy well above that of a constant classifier, which a model reaches on its own scale only."""
    share = float(y.bincount().max()) / len(y)
    return min(4 * share, (1 + share) / 2)
