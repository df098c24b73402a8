"""A ball that holds every image, in which every classifier can be wrong."""

from __future__ import annotations

from dataclasses import replace

from adv_train.attacks import PGD
from adv_train.doctor.base import CHECKS, Finding, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.significance import exceeds

_HONEST = 0.05
"""Share of the images that PGD may leave there: steps through the whole range are coarse."""


@CHECKS.register("large-budget")
def large_budget(patient: Patient) -> Finding:
    """Does PGD break every image where the ball is the whole range of images?"""
    threat = patient.threat
    whole = threat.largest(patient.x.shape[1:], threat.high - threat.low)
    # Steps of a fixed share of the range, and some that are fine: an attack that overshoots is no masked gradient.
    robust = patient.right
    for step in (0.25, 0.05):
        attack = PGD(steps=20, restarts=1, step=step * whole)
        robust = robust & patient.robust(attack, replace(threat, eps=whole))
    left, n = int(robust.sum()), int(patient.right.sum())
    seen = f"with eps {whole:.4g}, the whole range of images, PGD leaves {left} of {n} ({left / n:.1%})"
    if not exceeds(left, n, _HONEST):
        return well(seen, left=left, n=n)
    return ill(
        seen,
        "Images of other classes are in the ball, so the gradients are masked: judge it by `square`, `transfer` and "
        "`autoattack`, and look for rounding, detach() or saturation inside the model.",
        left=left,
        n=n,
    )
