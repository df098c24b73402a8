"""A run that was evaluated only at budgets other than that of its training."""

from __future__ import annotations

from adv_train.doctor.base import CHECKS, Finding, NotCheckedError, doubtful, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.remedy import evaluate_again
from adv_train.threat import Threat


@CHECKS.register("trained-budget")
def trained_budget(patient: Patient) -> Finding:
    """Is there a record at the norm and eps of training?"""
    trained = patient.trained
    if trained is None:
        raise NotCheckedError("only a run records the norm and eps of training")
    judged = [record.threat for record in patient.records if record.attacks]
    if not judged:
        raise NotCheckedError("the run has no record under attack yet")
    seen = f"trained for {_told(trained)}; evaluated at {', '.join(dict.fromkeys(map(_told, judged)))}"
    figures = {"trained": _told(trained), "judged": [_told(threat) for threat in judged]}
    if any(threat.matches(trained) for threat in judged):
        return well(seen, **figures)
    swapped = any(threat.norm != trained.norm and abs(threat.eps - trained.eps) < 1e-9 for threat in judged)
    why = "The same eps means something else in another norm. " if swapped else ""
    remedy = f"{why}Evaluate it also at the budget of training: {evaluate_again(patient, trained)}"
    return doubtful(seen, remedy, **figures, norms_swapped=swapped)


def _told(threat: Threat) -> str:
    return f"{threat.norm} {threat.eps:.6g}"
