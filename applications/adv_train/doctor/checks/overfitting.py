"""Overfitting to the attack of training, in the history of a run."""

from __future__ import annotations

from adv_train import evaluation
from adv_train.doctor.base import CHECKS, Finding, NotCheckedError, doubtful, ill, well
from adv_train.doctor.patient import Patient

_FAR = 0.1
_OF_BEST = 0.25
"""The last epoch is far worse than the best if it lacks this accuracy, or this share of the best one if that is less.
At a large budget the best accuracy can be below a tenth."""


@CHECKS.register("overfitting")
def overfitting(patient: Patient) -> Finding:
    """Did training overfit to its own attack, or is the last epoch far worse than the best?"""
    history = evaluation.stayed(patient.history)
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
    # Histories hold accuracies, not the outcome of each image, so no paired test is possible.
    chance = evaluation.chance_margin(best["val_ra"], last["val_ra"], best, last)
    if best["val_ra"] - last["val_ra"] < max(min(_FAR, _OF_BEST * best["val_ra"]), chance):
        return well(seen, **figures)
    return doubtful(seen, "Evaluate best.pt, not last.pt, and train for fewer epochs or with --ema.", **figures)
