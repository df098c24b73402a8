"""PGD with a ball that contains every image, in which it must break every classifier."""

from __future__ import annotations

from dataclasses import replace

from adv_train.attacks import PGD
from adv_train.doctor.base import CHECKS, Finding, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.significance import exceeds

_HONEST = 0.05
"""Share of the images that may withstand PGD there: steps through the whole range are coarse."""


@CHECKS.register("large-budget")
def large_budget(patient: Patient) -> Finding:
    """Does PGD break every image if the ball is the whole range of images?"""
    threat = patient.threat
    whole = threat.largest(patient.x.shape[1:], threat.high - threat.low)
    # With long and with short steps: that long steps overshoot does not mean that gradients are masked.
    robust = patient.right
    for step in (0.25, 0.05):
        attack = PGD(steps=20, restarts=1, step=step * whole)
        robust = robust & patient.robust(attack, replace(threat, eps=whole))
    left, n = int(robust.sum()), int(patient.right.sum())
    seen = f"with eps {whole:.4g}, the whole range of images, {left} of {n} images withstand PGD ({left / n:.1%})"
    if not exceeds(left, n, _HONEST):
        return well(seen, left=left, n=n)
    return ill(
        seen,
        "The ball contains images of other classes, so the gradients must be masked: evaluate the model with `square`, "
        "`transfer` and `autoattack`, and look for rounding, detach() or saturation inside it.",
        left=left,
        n=n,
    )
