"""An accuracy under attack above the clean accuracy."""

from __future__ import annotations

from typing import Final

import torch

from adv_train.doctor.base import CHECKS, Finding, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.same import is_randomised
from adv_train.doctor.significance import more
from adv_train.evaluation import Evaluation
from adv_train.measures import survives_one_step

_OWN_CLEAN_PASS: Final = "autoattack-rand"
"""The attack whose verdict does not depend on the clean pass of the evaluation."""

_PROBES: Final = 64


@CHECKS.register("robust-above-clean")
def robust_above_clean(patient: Patient) -> Finding:
    """Is the model more accurate under attack than without, measured or recorded?"""
    randomised = bool(patient.records) and is_randomised(patient.model, patient.x[:_PROBES])
    above = [
        f"{name} {outcome.accuracy:.1%} at eps {record.eps:.4g}, clean {record.sa:.1%}"
        for record in patient.records
        for name, outcome in record.attacks.items()
        if _exceeds(record, name, randomised=randomised)
    ]
    if above:
        return ill(
            f"records have {'; '.join(above)}",
            "An attack can return each image unchanged, so no robust accuracy exceeds the clean one: evaluate both on "
            "the same images (`adv-train eval --again`), and a randomised model in several passes.",
            records=above,
        )
    one_step = survives_one_step(patient.model, patient.x, patient.y, patient.threat)
    before, after = (float(flags.double().mean()) for flags in (patient.right, one_step))
    seen = f"accuracy {before:.1%} on clean images, {after:.1%} after one step of an attack, n = {len(one_step)}"
    if not more(one_step, patient.right):
        return well(seen, clean=before, one_step=after)
    return ill(
        seen,
        "The step helps the model: it has learnt to read the label from the attack step of training, or its gradients "
        "point in the wrong direction. Train from a random start (`fast-at`, `n-fgsm`), and evaluate it with "
        "`autoattack`.",
        clean=before,
        one_step=after,
    )


def _exceeds(record: Evaluation, name: str, *, randomised: bool) -> bool:
    """Return whether the accuracy under an attack exceeds the clean accuracy, and not by chance.

    If the model draws random numbers, the clean pass of the evaluation and that of the attack differ, and a healthy
    model that withstands the attack can be more accurate in the second. A deterministic model classifies an image alike
    in both passes, up to rounding near the border of two classes. Such an image does not withstand an attack unless eps
    is 0, so without random numbers and with a budget, any excess is a mistake.
    """
    robust = record.attacks[name].robust
    if randomised or name == _OWN_CLEAN_PASS or record.eps == 0:
        return more(torch.from_numpy(robust), torch.from_numpy(record.clean))
    return bool(robust.mean() > record.clean.mean())
