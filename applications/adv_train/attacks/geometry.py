"""What a norm decides in projected gradient ascent: the start, the step and the projection. One class a norm."""

from __future__ import annotations

from typing import Final, Protocol

import torch
from torch import Tensor

from adv_train.errors import UserError
from adv_train.threat import Threat


class Geometry(Protocol):
    """The perturbations that a threat allows, as ascent sees them; images have shape ``(batch, C, H, W)``."""

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw a start in the ball around each image; it may leave the range of images."""

    def step(self, gradient: Tensor) -> Tensor:
        """Give the direction of steepest ascent, of length 1 in the norm."""

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Give the nearest allowed image."""


class Linf:
    """The maximum norm: a box, cut by the range of images."""

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw uniformly in the box."""
        noise = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
        return x + threat.eps * noise.uniform_(-1, 1, generator=generator).to(x.device)

    def step(self, gradient: Tensor) -> Tensor:
        """Give the sign: every pixel moves as far as it may."""
        return gradient.sign()

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Clip, pixel by pixel."""
        return z.clamp((x - threat.eps).clamp(min=threat.low), (x + threat.eps).clamp(max=threat.high))


GEOMETRIES: Final[dict[str, Geometry]] = {"linf": Linf()}


def geometry(norm: str) -> Geometry:
    """Find the geometry of a norm.

    Raises:
        UserError: When PGD does not know the norm.
    """
    if norm not in GEOMETRIES:
        raise UserError(f"PGD does not attack in the norm `{norm}` yet, only in {', '.join(GEOMETRIES)}.")
    return GEOMETRIES[norm]
