"""Attacks on the smoothed model, whose gradient rounding and noise do not hide."""

from __future__ import annotations

import torch

from adv_train.doctor.base import CHECKS, Finding
from adv_train.doctor.challengers import by_differences, by_gradients, climb
from adv_train.doctor.overlooked import overlooked
from adv_train.doctor.patient import Patient


@CHECKS.register("smoothing")
def smoothing(patient: Patient) -> Finding:
    """Does ascent on the loss averaged over noise break images that withstand PGD?

    The averaged loss has a useful gradient even if the model itself rounds or oscillates. The check estimates it by the
    mean of the gradients over the noise and, for the images left, by the mean of the noise times the difference of the
    loss along it. This works like a straight-through backward pass, for any model (Athalye, Carlini and Wagner, ICML
    2018, section 4).
    """
    x, y = patient.left()
    threat, parts = patient.threat, []
    with patient.forward() as forward:
        generator = patient.generator()
        for images, labels in patient.batches(x, y):
            broken = torch.zeros_like(labels, dtype=torch.bool)
            for rise, draws in ((by_gradients(forward, threat), 8), (by_differences(forward, threat), 32)):
                rest = ~broken
                if bool(rest.any()):
                    broken[rest] = climb(
                        forward, images[rest], labels[rest], threat, generator, rise, steps=8, draws=draws
                    )
            parts.append(broken)
    return overlooked(patient, torch.cat(parts), "ascent on the loss averaged over noise")
