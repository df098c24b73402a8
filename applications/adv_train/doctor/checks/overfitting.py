"""Overfitting to the attack of training, in the history of a run."""

from __future__ import annotations

from adv_train import evaluation
from adv_train.doctor.base import CHECKS, Finding, NotCheckedError, doubtful, ill, well
from adv_train.doctor.patient import Patient

_APART = 0.1
"""Two robust accuracies on validation images that differ by less than this may differ by chance."""


@CHECKS.register("overfitting")
def overfitting(patient: Patient) -> Finding:
    """Did training overfit to its own attack, or is the last epoch far worse than the best?"""
    history = [record for record in patient.history if "rolled_back_to" not in record]
    if not history:
        raise NotCheckedError("the model has no history of epochs")
    if not patient.attacked:
        raise NotCheckedError("standard training has no attack to overfit to")
    best, last = max(history, key=lambda record: record["val_ra"]), history[-1]
    seen = (
        f"robust accuracy on the validation images {best['val_ra']:.1%} after epoch {best['epoch']}, "
        f"{last['val_ra']:.1%} after the last ({last['epoch']})"
    )
    figures = {"best": best["val_ra"], "best_epoch": best["epoch"], "last": last["val_ra"], "epochs": len(history)}
    if (told := evaluation.overfitting(history)) is not None:
        return ill(
            f"{seen}. {told}",
            "Train again with --rollback, or with a method that overfits less (`n-fgsm`, `pgd-at`). Evaluate "
            "best.pt with `autoattack`.",
            **figures,
        )
    if best["val_ra"] - last["val_ra"] < _APART:
        return well(seen, **figures)
    return doubtful(seen, "Evaluate best.pt, not last.pt, and train for fewer epochs or with --ema.", **figures)
