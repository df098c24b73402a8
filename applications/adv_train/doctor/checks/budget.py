"""Budgets that are probably in the wrong unit, or meant for another norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from adv_train.doctor.base import CHECKS, Finding, doubtful, ill, well
from adv_train.doctor.patient import Patient
from adv_train.threat import NORMS, Threat

_GREY = 1 / 255
_FEW_LEVELS: Final = (1, 2, 3, 4, 6, 8, 10, 12, 16)
"""Budgets that people publish in linf, in grey levels."""

_LARGEST: Final = {"linf": 16 / 255, "l2": 1.0}
"""About the largest budget published in a norm; usual budgets of the next norm are larger."""


@CHECKS.register("budget")
def budget(patient: Patient) -> Finding:
    """Is eps in the unit of the images, and meant for this norm?"""
    norm, eps, size = patient.norm, patient.eps, math.prod(patient.x.shape[1:])
    whole = Threat(norm, 0.0).largest(patient.x.shape[1:], 1.0)
    each = eps / Threat(norm, 0.0).largest(patient.x.shape[1:], 1.0) / _GREY
    seen = f"eps {eps:.6g} in {norm} allows {each:.3g} grey levels per value if it is spread over the image"
    figures = {"eps": eps, "norm": norm, "grey_levels": each}
    if eps > whole:
        meant = f"eps {eps:g}/255 = {eps / 255:.4g}" if eps <= 255 * whole else f"eps of at most {whole:.4g}"
        return ill(
            f"{seen}; the largest distance of images in [0, 1] is {whole:.4g}",
            f"Give {meant} for images in [0, 1].",
            **figures,
        )
    if eps == 0:
        return ill(f"{seen}; no image is attacked", f"Give eps above 0. {NORMS[norm]}", **figures)
    grey = _reaching_grey(patient)
    if grey > 0.5:
        return ill(
            f"{seen}; within it, {grey:.0%} of the images can become the same grey image, so no model is robust",
            f"Check the norm and the unit. {NORMS[norm]}" + (" 0.5 is usual for l2." if norm == "linf" else ""),
            **figures,
            reach_grey=grey,
        )
    if norm == "linf" and eps < _GREY / 2:
        return ill(
            f"{seen}: less than half a level",
            f"If you divided it by 255 twice, give eps {eps * 255:.4g} ({eps * 255**2:.3g}/255).",
            **figures,
        )
    smaller = {"l2": "linf", "l1": "l2"}.get(norm)
    if smaller and each < 0.5 and eps <= _LARGEST[smaller] * 1.0001:
        return doubtful(
            f"{seen}: less than half a level",
            f"This eps is usual in {smaller}: give --norm {smaller}, or an eps for {norm}. {NORMS[norm]}",
            **figures,
            values=size,
        )
    if norm == "linf" and (found := _in_deviations(eps, patient)) is not None:
        levels, std = found
        return doubtful(
            f"{seen}; it is {levels}/255 divided by the standard deviation {std:.4g}",
            f"If you meant it for normalised images, give eps {levels}/255: the attacks change images in [0, 1].",
            **figures,
            std=std,
        )
    return well(seen, **figures)


def _reaching_grey(patient: Patient) -> float:
    """Return the share of the images whose ball contains the grey image 0.5; 0 if the images are not in [0, 1]."""
    x = patient.x
    if not bool(((x >= 0) & (x <= 1)).all()):
        return 0.0
    reached = Threat(patient.norm, 0.0).distance(torch.full_like(x, 0.5) - x) <= patient.eps
    return float(reached.double().mean())


def _in_deviations(eps: float, patient: Patient) -> tuple[int, float] | None:
    """Find grey levels and a standard deviation whose ratio is eps, if eps is not a round number itself."""
    if patient.statistics is None or _is_round(eps):
        return None
    deviations: Sequence[float] = patient.statistics[1]
    for std in (*deviations, sum(deviations) / len(deviations)):
        for levels in _FEW_LEVELS:
            if abs(eps * std / _GREY - levels) < 0.003 * levels:
                return levels, std
    return None


def _is_round(eps: float) -> bool:
    """Return whether people write such an eps: with two digits, in half grey levels, or as a simple fraction."""
    two_digits = math.isclose(float(f"{eps:.2g}"), eps, rel_tol=1e-9)
    halves = abs(eps * 510 - round(eps * 510)) < 0.01 * eps * 255
    small = any(math.isclose(eps * below, round(eps * below), rel_tol=1e-9) for below in range(2, 33))
    return two_digits or (halves and eps * 510 <= 64) or small
