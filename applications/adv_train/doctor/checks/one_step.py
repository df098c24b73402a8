"""A single attack step that breaks images which withstand PGD."""

from __future__ import annotations

from adv_train.doctor.base import CHECKS, Finding
from adv_train.doctor.overlooked import overlooked
from adv_train.doctor.patient import Patient
from adv_train.measures import survives_one_step


@CHECKS.register("one-step")
def one_step(patient: Patient) -> Finding:
    """Does a single step of length eps break images that withstand PGD?"""
    x, y = patient.left()
    return overlooked(patient, ~survives_one_step(patient.model, x, y, patient.threat), "one step")
