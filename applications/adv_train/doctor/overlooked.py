"""Images that PGD leaves and another attack breaks: robustness that is not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from torch import Tensor

from adv_train.attacks import PGD
from adv_train.doctor.base import Finding, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.significance import exceeds

_OF_LEFT: Final = 0.03
"""Share of the images PGD leaves that a weaker attack may break although gradients lead somewhere."""

_OF_ALL: Final = 0.01
"""Likewise of all images that were attacked: where PGD leaves few, these are at the edge of the ball."""


def overlooked(patient: Patient, broken: Tensor, by: str) -> Finding:
    """Judge by whether a weaker attack breaks what PGD leaves.

    Args:
        patient: Whose images are attacked.
        broken: Of each image that PGD leaves, in the order of `Patient.left`, whether the other attack breaks it.
        by: What the other attack is called.
    """
    x, y = patient.left()
    if _is_much(broken, patient):
        # Before an alarm PGD may try harder: what only needs more steps is not hidden from it.
        suspects = broken.clone()
        broken[suspects] = replace(patient, x=x[suspects], y=y[suspects]).robust(PGD(50, 10), patient.threat)
    count, n = int(broken.sum()), len(broken)
    seen = f"PGD leaves {n} of {int(patient.right.sum())} images; {by} breaks {count} of them ({count / n:.1%})"
    figures = {"left_by_pgd": n, "broken": count}
    if not _is_much(broken, patient):
        return well(seen, **figures)
    return ill(
        seen,
        "The gradients are masked: look for rounding, sampling, detach() or saturation inside the model, and judge it "
        "by `square`, `transfer` and `autoattack`, not by PGD alone.",
        **figures,
    )


def _is_much(broken: Tensor, patient: Patient) -> bool:
    count = int(broken.sum())
    return exceeds(count, len(broken), _OF_LEFT) and exceeds(count, int(patient.right.sum()), _OF_ALL)
