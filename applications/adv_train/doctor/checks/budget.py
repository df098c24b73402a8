"""Budgets in another unit, or another norm, than was meant."""

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
"""About the largest budgets published in a norm, which are the smallest of the next one."""


@CHECKS.register("budget")
def budget(patient: Patient) -> Finding:
    """Is eps in the unit of the images, and meant in this norm?"""
    norm, eps, size = patient.norm, patient.eps, math.prod(patient.x.shape[1:])
    whole = Threat(norm, 0.0).largest(patient.x.shape[1:], 1.0)
    each = eps / Threat(norm, 0.0).largest(patient.x.shape[1:], 1.0) / _GREY
    seen = f"eps {eps:.6g} in {norm}, spread over an image {each:.3g} grey levels a value"
    figures = {"eps": eps, "norm": norm, "grey_levels": each}
    if eps > whole:
        meant = f"eps {eps:g}/255 = {eps / 255:.4g}" if eps <= 255 * whole else f"eps of at most {whole:.4g}"
        return ill(
            f"{seen}; images in [0, 1] are at most {whole:.4g} apart", f"Give {meant} for images in [0, 1].", **figures
        )
    if eps == 0:
        return ill(f"{seen}; nothing is attacked", f"Give eps above 0. {NORMS[norm]}", **figures)
    grey = _reaching_grey(patient)
    if grey > 0.5:
        return ill(
            f"{seen}; within it {grey:.0%} of the images can become the same grey image, so no model is robust",
            f"Look at norm and unit: {NORMS[norm]}" + (" 0.5 is usual for l2." if norm == "linf" else ""),
            **figures,
            reach_grey=grey,
        )
    if norm == "linf" and eps < _GREY / 2:
        return ill(
            f"{seen}: less than half a level",
            f"If it was divided by 255 twice, give eps {eps * 255:.4g} ({eps * 255**2:.3g}/255).",
            **figures,
        )
    smaller = {"l2": "linf", "l1": "l2"}.get(norm)
    if smaller and each < 0.5 and eps <= _LARGEST[smaller] * 1.0001:
        return doubtful(
            f"{seen}: less than half a level",
            f"It is a usual eps of {smaller}: give --norm {smaller}, or an eps for {norm}. {NORMS[norm]}",
            **figures,
            values=size,
        )
    if norm == "linf" and (found := _in_deviations(eps, patient)) is not None:
        levels, std = found
        return doubtful(
            f"{seen}; it is {levels}/255 divided by the standard deviation {std:.4g}",
            f"If it was meant for normalised images, give eps {levels}/255: the attacks move images in [0, 1].",
            **figures,
            std=std,
        )
    return well(seen, **figures)


def _reaching_grey(patient: Patient) -> float:
    """Return the share of the images in [0, 1] that have the middle grey in their ball."""
    x = patient.x
    if not bool(((x >= 0) & (x <= 1)).all()):
        return 0.0
    reached = Threat(patient.norm, 0.0).distance(torch.full_like(x, 0.5) - x) <= patient.eps
    return float(reached.double().mean())


def _in_deviations(eps: float, patient: Patient) -> tuple[int, float] | None:
    """Find the number of grey levels that eps is in units of a standard deviation, if it is no round number itself."""
    if patient.statistics is None or _is_round(eps):
        return None
    deviations: Sequence[float] = patient.statistics[1]
    for std in (*deviations, sum(deviations) / len(deviations)):
        for levels in _FEW_LEVELS:
            if abs(eps * std / _GREY - levels) < 0.003 * levels:
                return levels, std
    return None


def _is_round(eps: float) -> bool:
    """Whether people write it so: in two digits, in half grey levels, or as a fraction of small numbers."""
    two_digits = math.isclose(float(f"{eps:.2g}"), eps, rel_tol=1e-9)
    halves = abs(eps * 510 - round(eps * 510)) < 0.01 * eps * 255
    small = any(math.isclose(eps * below, round(eps * below), rel_tol=1e-9) for below in range(2, 33))
    return two_digits or (halves and eps * 510 <= 64) or small
