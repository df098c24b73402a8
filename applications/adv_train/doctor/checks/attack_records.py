"""Records in which Square, a transfer attack or AutoAttack breaks images that withstand PGD."""

from __future__ import annotations

from typing import Final

from adv_train.doctor.base import CHECKS, Finding, NotCheckedError, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.significance import exceeds

_HONEST: Final = {"square": 0.05, "transfer": 0.05, "autoattack": 0.5, "autoattack-plus": 0.5, "cascade": 0.5}
"""Share of the images that withstand PGD that each attack may break. On models without masked gradients, AutoAttack's
targeted attacks are stronger than PGD: among the published cells they break up to 43 % of these images."""

_OF_ALL: Final = 0.01
"""Share of the correctly classified images that it may break: if few withstand PGD, they are at the edge of it."""


@CHECKS.register("attack-records")
def attack_records(patient: Patient) -> Finding:
    """Do the records show images that withstand PGD and that Square, a transfer attack or AutoAttack breaks?"""
    compared = []
    for record in patient.records:
        if "pgd" not in record.attacks:
            continue
        left = record.attacks["pgd"].robust
        for name in _HONEST:
            if name in record.attacks and left.any():
                broken = left & ~record.attacks[name].robust
                compared.append((name, int(broken.sum()), int(left.sum()), record.eps, int(record.clean.sum())))
    if not compared:
        raise NotCheckedError("no record has PGD together with Square, a transfer attack or AutoAttack")
    told = [
        f"at eps {eps:.4g} {name} breaks {broken} of {n} images that withstand PGD"
        for name, broken, n, eps, _ in compared
    ]
    bad = [row for row in compared if exceeds(row[1], row[2], _HONEST[row[0]]) and exceeds(row[1], row[4], _OF_ALL)]
    keys = ("attack", "broken", "left", "eps", "right")
    figures = {"compared": [dict(zip(keys, row, strict=True)) for row in compared]}
    if not bad:
        return well("; ".join(told), **figures)
    return ill(
        "; ".join(told),
        f"PGD overstates the robustness, probably due to masked gradients: report the accuracy under `{bad[0][0]}`.",
        **figures,
    )
