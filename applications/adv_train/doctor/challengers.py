"""Attacks that still work where the gradient at the image is useless: uniform draws, and ascent on a smoothed loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from adv_train.attacks.geometry import GEOMETRIES
from adv_train.attacks.judging import classes_of, deficit
from adv_train.attacks.room import Forward
from adv_train.measures.slope import scaled, slope
from adv_train.threat import Threat

Rise: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps images, labels and noise of the images' shape to a term of the direction; the mean over noise is followed."""


def draw_uniformly(
    forward: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator, draws: int
) -> Tensor:
    """Return which images the model misclassifies at one of `draws` uniform points of the ball, bool ``(batch,)``."""
    shape, broken = GEOMETRIES[threat.norm], torch.zeros_like(y, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(draws):
            broken |= classes_of(forward(shape.project(shape.start(x, threat, generator), x, threat))) != y
    return broken


def climb(
    forward: Forward,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    generator: torch.Generator,
    rise: Rise,
    *,
    steps: int,
    draws: int,
) -> Tensor:
    """Ascend along the mean of `rise` over noise; return which images some step breaks, bool ``(batch,)``."""
    shape, broken, z = GEOMETRIES[threat.norm], torch.zeros_like(y, dtype=torch.bool), x
    for _ in range(steps):
        mean = torch.zeros_like(x)
        for _ in range(draws):
            noise = shape.start(torch.zeros_like(x), threat, generator)
            mean += rise(z, y, noise)
        z = shape.project(z + threat.eps / 4 * shape.step(mean), x, threat)
        with torch.no_grad():
            broken |= classes_of(forward(z)) != y
    return broken


def by_gradients(forward: Forward, threat: Threat) -> Rise:
    """Return the rise that is the scaled gradient at the noisy image; its mean approximates that of a smoothed loss."""
    return lambda z, y, noise: scaled(slope(forward, (z + noise).clamp(threat.low, threat.high), y))


def by_differences(forward: Forward, threat: Threat) -> Rise:
    """Return the rise that is the noise times the difference of the loss along it.

    It needs no gradient, so rounding inside the model does not hide the direction.
    """

    def rise(z: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            ahead, behind = (deficit(forward((z + sign * noise).clamp(threat.low, threat.high)), y) for sign in (1, -1))
        return (ahead - behind).view(-1, *(1,) * (z.ndim - 1)).to(z.dtype) * noise

    return rise
