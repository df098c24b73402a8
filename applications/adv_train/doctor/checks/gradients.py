"""Gradients that vanish or are not finite on correctly classified images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adv_train.attacks.judging import full_resolution
from adv_train.doctor.base import CHECKS, Finding, NotCheckedError, ill, well
from adv_train.doctor.patient import Patient
from adv_train.doctor.significance import exceeds
from adv_train.measures.slope import slope

_MANY = 0.05
"""Share of the images whose gradient may vanish in a sound model."""

_SEEING = 0.01
"""A gradient counts as vanishing if at most this share of its values is not zero."""


@CHECKS.register("gradients")
def gradients(patient: Patient) -> Finding:
    """Does the loss of correctly classified images have a finite gradient that is not zero?"""
    x, y = (part[patient.right] for part in (full_resolution(patient.x), patient.y))
    if len(x) == 0:
        raise NotCheckedError("no image is classified correctly")
    with patient.forward() as forward:
        parts = patient.batches(x, y)
        plain = torch.cat([_gradient(forward, *part) for part in parts])
        margin = torch.cat([slope(forward, *part) for part in parts])
    infinite, blind = ~plain.isfinite().flatten(1).all(1), _blind(plain)
    n, bad, zero, unseen = len(x), int(infinite.sum()), int(blind.sum()), int(_blind(margin).sum())
    seen = f"of {n} correctly classified images the gradient vanishes on {zero} and is not finite on {bad}"
    figures: dict[str, int | None] = {"n": n, "vanishing": zero, "not_finite": bad, "vanishing_of_the_margin": unseen}
    if bad:
        return ill(seen, "Look for sqrt, norm or log at 0 in the model, or for weights that overflow.", **figures)
    if not exceeds(zero, n, _MANY):
        return well(seen, **figures)
    if not exceeds(unseen, n, _MANY):
        return ill(
            f"{seen}; the gradient of the margin vanishes on {unseen}: the cross-entropy is saturated",
            "Evaluate it with attacks whose loss uses the logits (`apgd`, `pgd-targeted`, `autoattack`), or divide the "
            "logits by a constant.",
            **figures,
        )
    double = _in_double(patient, x[blind], y[blind])
    figures["vanishing_in_double"] = double
    if double is not None and double < 0.5 * zero:
        return ill(
            f"{seen}; in float64 it vanishes on {double}: it underflows",
            "Evaluate it in float64 (`model.double()`, images too), or scale down the values that saturate inside the "
            "model.",
            **figures,
        )
    return ill(
        seen,
        "Look for rounding, argmax, detach() or saturation inside the model. Evaluate it with `square` and `transfer`, "
        "or give the rounding a straight-through gradient.",
        **figures,
    )


def _gradient(forward: object, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the summed cross-entropy in the images, as in PGD."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        logits = forward(point)  # type: ignore[operator]
        loss = cross_entropy(logits, y, reduction="sum")
        (found,) = torch.autograd.grad(loss, point, allow_unused=True) if loss.requires_grad else (None,)
    return torch.zeros_like(x) if found is None else found


def _blind(gradient: Tensor) -> Tensor:
    return (gradient != 0).flatten(1).double().mean(1) <= _SEEING


def _in_double(patient: Patient, x: Tensor, y: Tensor) -> int | None:
    """Count the vanishing gradients in double precision; None if the model cannot be copied or converted."""
    try:
        model = copy.deepcopy(patient.model).double().eval()
        return int(_blind(_gradient(model, x.double(), y)).sum())
    except (RuntimeError, TypeError):  # a layer or device without double precision, or a model that cannot be copied
        return None
