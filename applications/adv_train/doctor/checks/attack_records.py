"""Records in which Square, a transfer attack or AutoAttack breaks images that withstand PGD."""

from __future__ import annotations

from typing import Final, NamedTuple

from adv_train.doctor.base import CHECKS, Finding, NotCheckedError, doubtful, ill, well
from adv_train.doctor.patient import STEPS, Patient
from adv_train.doctor.remedy import evaluate_again
from adv_train.doctor.significance import exceeds
from adv_train.evaluation import Evaluation
from adv_train.threat import Norm, Threat

_HONEST: Final = {"square": 0.05, "transfer": 0.05, "autoattack": 0.5, "autoattack-plus": 0.5, "cascade": 0.5}
"""Share of the images that withstand PGD that each attack may break. On models without masked gradients, AutoAttack's
targeted attacks are stronger than PGD: among the published cells they break up to 43 % of these images."""

_OF_ALL: Final = 0.01
"""Share of the correctly classified images that it may break: if few withstand PGD, they are at the edge of it."""


class _Comparison(NamedTuple):
    """PGD and another attack in one record.

    Attributes:
        attack: Name of the other attack.
        broken: Number of images that withstand PGD and that it breaks.
        left: Number of images that withstand PGD.
        eps: Radius of both.
        right: Number of correctly classified images.
        pgd_steps: Number of steps of PGD; None if the record does not tell.
        norm: Norm of both.
    """

    attack: str
    broken: int
    left: int
    eps: float
    right: int
    pgd_steps: int | None
    norm: Norm

    @property
    def is_bad(self) -> bool:
        """Whether the attack breaks more of the images than on models without masked gradients, and not by chance."""
        return exceeds(self.broken, self.left, _HONEST[self.attack]) and exceeds(self.broken, self.right, _OF_ALL)

    @property
    def is_short(self) -> bool:
        """Whether PGD has so few steps that it leaves images of a healthy model, which stronger attacks break."""
        return self.pgd_steps is not None and self.pgd_steps < STEPS

    @property
    def kind(self) -> tuple[str, float, Norm]:
        """The attack and the threat."""
        return self.attack, self.eps, self.norm


@CHECKS.register("attack-records")
def attack_records(patient: Patient) -> Finding:
    """Do the records show images that withstand PGD and that Square, a transfer attack or AutoAttack breaks?"""
    compared = [_compared(record, name) for record in patient.records for name in _HONEST if _holds(record, name)]
    shown = [each for each in compared if each.left]
    if not shown:
        raise NotCheckedError("no record has PGD together with Square, a transfer attack or AutoAttack")
    told = "; ".join(
        f"at eps {each.eps:.4g} {each.attack} breaks {each.broken} of {each.left} images that withstand PGD"
        for each in shown
    )
    figures = {"compared": [each._asdict() for each in shown]}
    # A short PGD tells nothing where another record has a longer one.
    settled = {each.kind for each in compared if not each.is_short}
    bad = [each for each in shown if each.is_bad and not (each.is_short and each.kind in settled)]
    masked = next((each for each in bad if not each.is_short), None)
    if masked is not None:
        return ill(
            told,
            f"PGD overstates the robustness, probably due to masked gradients: report the accuracy under "
            f"`{masked.attack}`.",
            **figures,
        )
    if bad:
        first = bad[0]
        return doubtful(
            f"{told}; that PGD has {first.pgd_steps} steps",
            f"PGD with fewer than {STEPS} steps is too weak for a comparison. Evaluate with `--pgd-steps 50`: "
            f"{evaluate_again(patient, Threat(first.norm, first.eps))} --attacks pgd,{first.attack} --pgd-steps 50",
            **figures,
        )
    return well(told, **figures)


def _holds(record: Evaluation, name: str) -> bool:
    return "pgd" in record.attacks and name in record.attacks


def _compared(record: Evaluation, name: str) -> _Comparison:
    pgd, other = record.attacks["pgd"], record.attacks[name]
    broken = int((pgd.robust & ~other.robust).sum())
    left, right, steps = int(pgd.robust.sum()), int(record.clean.sum()), pgd.settings.get("steps")
    return _Comparison(name, broken, left, record.eps, right, None if steps is None else int(steps), record.threat.norm)
