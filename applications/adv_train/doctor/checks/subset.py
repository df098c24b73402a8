"""A headline record that covers only some of the test images."""

from __future__ import annotations

from adv_train.doctor.base import CHECKS, Finding, NotCheckedError, doubtful, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.remedy import evaluate_again
from adv_train.evaluation import headline, wilson


@CHECKS.register("subset")
def subset(patient: Patient) -> Finding:
    """Does the record that represents the model cover all test images?"""
    if not patient.records:
        raise NotCheckedError("the model has no record")
    record = headline(patient.records, patient.trained)
    if record.of is None:
        raise NotCheckedError("the record does not say how many test images there are")
    told = []
    for name, flags in {"clean": record.clean, **{n: o.robust for n, o in record.attacks.items()}}.items():
        low, high = wilson(int(flags.sum()), record.n)
        told.append(f"{name} {flags.mean():.1%} [{low:.1%}, {high:.1%}]")
    seen = f"{record.n} of {record.of} test images were evaluated: {', '.join(told)}"
    figures = {"n": record.n, "of": record.of, "intervals": record.intervals()}
    if record.n >= record.of:
        return well(seen, **figures)
    command = evaluate_again(patient, record.threat, record.attacks)
    return doubtful(seen, f"Report n and the intervals, or evaluate all images: {command}", **figures)
