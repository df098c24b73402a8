"""Predictions that depend on the other images of the batch."""

from __future__ import annotations

import torch

from adv_train.attacks.judging import frozen
from adv_train.doctor.base import CHECKS, Finding, NotCheckedError, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.same import differ, first_parting, logits, untouched

_PROBES = 16


@CHECKS.register("batch-dependence")
def batch_dependence(patient: Patient) -> Finding:
    """Do the logits of an image depend on the other images in its batch?"""
    probes = patient.x[:_PROBES]
    # Two batches with the same first rows and very different statistics: the other rows are once the images themselves
    # and once constant, at the largest value of a pixel.
    one = torch.cat([probes, probes.flip(0)])
    other = torch.cat([probes, torch.full_like(probes, float(patient.x.max()))])
    model, n = patient.model, len(probes)
    with untouched(model, one):
        first = logits(model, one)[:n]
        if bool(differ(first, logits(model, one)[:n]).any()):
            raise NotCheckedError("two passes over the same batch differ (see `randomness`)")
        second = logits(model, other)[:n]
        moved = differ(first, second)
        with frozen(model):
            still = bool(differ(logits(model, one)[:n], logits(model, other)[:n]).any())
        place = first_parting(model, one, other, n) if bool(moved.any()) else None
    changed = int((first.argmax(1) != second.argmax(1)).sum())
    seen = f"other images in the batch change the logits of {patient.share_of(moved)} and the class of {changed}"
    figures = {"probes": n, "moved": int(moved.sum()), "classes_changed": changed}
    if not bool(moved.any()):
        return well(seen, **figures)
    where = f"the first layer that differs is {place}" if place else "the difference does not arise in a single layer"
    remedy = (
        "The same happens in eval mode: give BatchNorm running statistics (`track_running_stats=True`) and use them "
        "in the evaluation."
        if still
        else "Call `model.eval()` before the evaluation: in train mode BatchNorm uses the statistics of the batch."
    )
    return ill(f"{seen}; {where}", remedy, **figures, in_eval_mode=still, layer=place)
