"""Checks of a model and its records for the classic mistakes in evaluating robustness, one file each."""

from __future__ import annotations

from adv_train.callable_module import make_callable
from adv_train.doctor.base import CHECKS, Finding
from adv_train.doctor.diagnosis import DOCTOR_FILE, Diagnosis
from adv_train.doctor.examine import LIMIT, chosen, doctor, examine
from adv_train.doctor.opening import patient_of_run, patient_of_weights
from adv_train.doctor.patient import Patient

__all__ = [
    "CHECKS",
    "DOCTOR_FILE",
    "LIMIT",
    "Diagnosis",
    "Finding",
    "Patient",
    "chosen",
    "doctor",
    "examine",
    "patient_of_run",
    "patient_of_weights",
]

make_callable(__name__)
