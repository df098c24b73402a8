"""A classifier that gives one answer, or few."""

from __future__ import annotations

import torch

from adv_train import evaluation
from adv_train.doctor.base import CHECKS, Finding, ill, well
from adv_train.doctor.patient import Patient


@CHECKS.register("collapse")
def collapse(patient: Patient) -> Finding:
    """Does the model answer with one class, or few, whatever it is shown?"""
    answers = patient.answers
    named, times = torch.unique(answers, return_counts=True)
    often = int(times.max()) / len(answers)
    seen = (
        f"{len(named)} classes are predicted of {len(patient.y.unique())}, the most frequent for {often:.1%} of "
        f"{len(answers)} images; accuracy {float(patient.right.double().mean()):.1%}"
    )
    figures = {"predicted": len(named), "most_frequent": often, "accuracy": float(patient.right.double().mean())}
    if evaluation.collapse(patient.y.cpu().numpy(), answers.cpu().numpy()) is None:
        return well(seen, **figures)
    return ill(
        seen,
        "Its robust accuracy is the share of those classes: report the accuracy of each class, train again with a "
        "smaller learning rate or eps, and look at `--eps-warmup`.",
        **figures,
    )
