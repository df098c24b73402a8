"""The verdict on images that withstand PGD and that a weaker attack breaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from torch import Tensor

from adv_train.attacks import PGD
from adv_train.doctor.base import Finding, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.significance import exceeds

_OF_LEFT: Final = 0.03
"""Share of the images that withstand PGD that a weaker attack may break although the gradients are sound."""

_OF_ALL: Final = 0.01
"""Share of all attacked images that it may break: if few withstand PGD, they are at the edge of being broken."""


def overlooked(patient: Patient, broken: Tensor, by: str) -> Finding:
    """Return the finding of a check that attacks the images that withstand PGD by a weaker attack.

    Args:
        patient: The patient whose images are attacked.
        broken: Whether the weaker attack breaks each image that withstands PGD, in the order of `Patient.left`.
        by: Name of the weaker attack.
    """
    x, y = patient.left()
    if _is_much(broken, patient):
        # Before an alarm, PGD attacks these images with more steps and restarts: if they only needed more steps, their
        # gradients are not masked.
        suspects = broken.clone()
        broken[suspects] = replace(patient, x=x[suspects], y=y[suspects]).robust(PGD(50, 10), patient.threat)
    count, n = int(broken.sum()), len(broken)
    seen = f"PGD leaves {n} of {int(patient.right.sum())} images; {by} breaks {count} of them ({count / n:.1%})"
    figures = {"left_by_pgd": n, "broken": count}
    if not _is_much(broken, patient):
        return well(seen, **figures)
    return ill(
        seen,
        "The gradients are masked: look for rounding, sampling, detach() or saturation inside the model, and "
        "evaluate it with `square`, `transfer` and `autoattack`, not with PGD alone.",
        **figures,
    )


def _is_much(broken: Tensor, patient: Patient) -> bool:
    count = int(broken.sum())
    return exceeds(count, len(broken), _OF_LEFT) and exceeds(count, int(patient.right.sum()), _OF_ALL)
