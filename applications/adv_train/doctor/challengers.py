"""Attacks that need no gradient at a point: uniform draws, and ascent on the loss averaged over noise."""

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
"""From images, labels and noise of their shape to a direction in which the averaged loss rises."""


def draw_uniformly(
    forward: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator, draws: int
) -> Tensor:
    """Tell which images one of so many uniform points of the ball breaks, bool ``(batch,)``."""
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
    """Tell which images some step of ascent along the mean direction over noise breaks, bool ``(batch,)``."""
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
    """Give the gradient at the noisy image: averaged, that of the smoothed model."""
    return lambda z, y, noise: scaled(slope(forward, (z + noise).clamp(threat.low, threat.high), y))


def by_differences(forward: Forward, threat: Threat) -> Rise:
    """Give the noise times the difference of the loss along it, which sees through rounding and needs no gradient."""

    def rise(z: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            ahead, behind = (deficit(forward((z + sign * noise).clamp(threat.low, threat.high)), y) for sign in (1, -1))
        return (ahead - behind).view(-1, *(1,) * (z.ndim - 1)).to(z.dtype) * noise

    return rise
