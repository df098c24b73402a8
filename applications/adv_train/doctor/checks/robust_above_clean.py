"""An accuracy under attack above the clean accuracy."""

from __future__ import annotations

from adv_train.doctor.base import CHECKS, Finding, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.significance import more
from adv_train.measures import survives_one_step


@CHECKS.register("robust-above-clean")
def robust_above_clean(patient: Patient) -> Finding:
    """Is the model more accurate under attack than without, measured or recorded?"""
    above = [
        f"{name} {outcome.accuracy:.1%} at eps {record.eps:.4g}, clean {record.sa:.1%}"
        for record in patient.records
        for name, outcome in record.attacks.items()
        if outcome.accuracy > record.sa
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
