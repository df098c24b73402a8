"""Logits that differ from pass to pass."""

from __future__ import annotations

from adv_train.doctor.base import CHECKS, Finding, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.same import differ, first_parting, is_randomised, logits, untouched

_PROBES = 64


@CHECKS.register("randomness")
def randomness(patient: Patient) -> Finding:
    """Do two passes over the same images return different logits?"""
    x, model = patient.x[:_PROBES], patient.model
    with untouched(model, x):
        first, second = logits(model, x), logits(model, x)
        moved = differ(first, second)
        place = first_parting(model, x, x, len(x)) if bool(moved.any()) else None
    changed = int((first.argmax(1) != second.argmax(1)).sum())
    seen = f"a second pass changes the logits of {patient.share_of(moved)} images and the class of {changed}"
    figures = {"probes": len(x), "moved": int(moved.sum()), "classes_changed": changed}
    if not bool(moved.any()):
        return well(seen, **figures)
    still = is_randomised(model, x)
    where = f"the first layer that differs is {place}" if place else "the difference does not arise in a single layer"
    remedy = (
        "The model is randomised in eval mode too: evaluate it with `--attacks autoattack-rand`, which averages "
        "gradients over passes."
        if still
        else "Call `model.eval()` before the evaluation: dropout is on in train mode."
    )
    return ill(f"{seen}; {where}", remedy, **figures, in_eval_mode=still, layer=place)
