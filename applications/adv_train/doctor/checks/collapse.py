"""A classifier that predicts only one class, or few."""

from __future__ import annotations

import torch

from adv_train import evaluation
from adv_train.doctor.base import CHECKS, Finding, ill, well
from adv_train.doctor.patient import Patient


@CHECKS.register("collapse")
def collapse(patient: Patient) -> Finding:
    """Does the model predict only one class, or few, for all images?"""
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
        "Its robust accuracy is the share of those classes among the images: report the accuracy of each class, and "
        "train again with a smaller learning rate or eps, or with `--eps-warmup`.",
        **figures,
    )
