"""Random search that breaks images which withstand PGD."""

from __future__ import annotations

import torch

from adv_train.attacks import Square
from adv_train.doctor.base import CHECKS, Finding
from adv_train.doctor.challengers import draw_uniformly
from adv_train.doctor.overlooked import overlooked
from adv_train.doctor.patient import Patient
from adv_train.errors import UserError

_DRAWS = 50
_QUERIES = 200


@CHECKS.register("random-search")
def random_search(patient: Patient) -> Finding:
    """Do Square or uniform draws from the ball break images that withstand PGD?"""
    x, y = patient.left()
    threat, parts = patient.threat, [f"{_DRAWS} uniform draws"]
    with patient.forward() as forward:
        generator = patient.generator()
        broken = torch.cat(
            [
                draw_uniformly(forward, images, labels, threat, generator, _DRAWS)
                for images, labels in patient.batches(x, y)
            ]
        )
    try:
        square = Square(queries=_QUERIES)
        found = square.judge(patient.model, x, y, threat, patient.judging)
        broken |= ~found.robust
        parts.append(f"Square with {_QUERIES} queries")
    except UserError:  # Square does not support very small images in l2 and l1; the draws alone must do there.
        pass
    return overlooked(patient, broken, " and ".join(parts))
