"""What a norm decides in projected gradient ascent: the start, the step and the projection. One class a norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import torch
from torch import Tensor

from adv_train import ranks
from adv_train.threat import Threat

_HALVINGS = 50
"""Of an interval of length 1: what is left of it is about the rounding of double precision."""


class Geometry(Protocol):
    """The perturbations that a threat allows, as ascent sees them; images have shape ``(batch, C, H, W)``."""

    @property
    def radii(self) -> tuple[float, ...]:
        """Radii of the ball in units of eps, each for the same number of steps; the last is 1 and has the rest."""

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw a start in the ball around each image; it may leave the range of images."""

    def step(self, gradient: Tensor) -> Tensor:
        """Give the direction of a step, of length 1."""

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Give the nearest allowed image."""


class Linf:
    """The maximum norm: a box, cut by the range of images."""

    radii = (1.0,)

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw uniformly in the box."""
        noise = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
        return x + threat.eps * ranks.uniform(noise, -1, 1, generator=generator).to(x.device)

    def step(self, gradient: Tensor) -> Tensor:
        """Give the sign: every pixel moves as far as it may."""
        return gradient.sign()

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Clip, pixel by pixel."""
        return z.clamp((x - threat.eps).clamp(min=threat.low), (x + threat.eps).clamp(max=threat.high))


class L2:
    """The Euclidean ball, cut by the range of images."""

    radii = (1.0,)

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw uniformly in the ball: a normal direction, and a radius whose power of the dimension is uniform."""
        like = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
        noise, size = ranks.normal(like, generator=generator), ranks.uniform(like[:, 0, 0, 0], generator=generator)
        radius = threat.eps * size ** (1 / x[0].numel())
        return x + (_per_image(radius, x) * _unit(noise)).to(x.device)

    def step(self, gradient: Tensor) -> Tensor:
        """Give the gradient, made a unit vector."""
        return _unit(gradient)

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Shorten the change and clip it; the nearest point is the one of these that comes to the boundary."""
        return _shortened(z, x, threat, lambda change, kept: kept * change)


class L1:
    """The ball of the sum of changes, cut by the range of images.

    Steps follow the gradient itself, since steepest ascent in this norm moves a single pixel. The ball shrinks on the
    way, as in l1-APGD (Croce and Hein, ICML 2021): in one of fixed radius ascent is caught by the first of many local
    maxima.
    """

    radii = (3.0, 2.0, 1.0)

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw uniformly in the ball: one share more than there are pixels, all exponential, and signs."""
        shares = torch.empty(len(x), x[0].numel() + 1, dtype=x.dtype, device=generator.device)
        shares = ranks.exponential(shares, generator=generator)
        shares = shares[:, 1:] / shares.sum(1, keepdim=True)
        sign = ranks.coins(shares, generator=generator) * 2 - 1
        return x + threat.eps * (sign * shares).view(x.shape).to(x.device)

    def step(self, gradient: Tensor) -> Tensor:
        """Give the gradient, made a unit vector in the Euclidean norm."""
        return _unit(gradient)

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Take the same off every change, down to none, and clip; the nearest point has the sum of the radius."""

        def less(change: Tensor, kept: Tensor) -> Tensor:
            loss = (1 - kept) * change.abs().amax(1, keepdim=True)
            return change.sign() * (change.abs() - loss).clamp(min=0)

        return _shortened(z, x, threat, less)


def _shortened(z: Tensor, x: Tensor, threat: Threat, shorten: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Give the longest change of the family ``shorten(change, kept)``, clipped, that the ball holds, by bisection.

    Args:
        z: Images to project.
        x: The images around which the balls are.
        threat: The ball and the range of images.
        shorten: Changes of shape ``(batch, pixels)`` whose norm grows with ``kept``, ``(batch, 1)``, from 0 to 1.
    """
    # Wide, so that the result is in the ball but for its own rounding; there is no double precision on MPS.
    wide = x.dtype if x.device.type == "mps" else torch.float64
    image = x.flatten(1).to(wide)
    change = z.flatten(1).to(wide) - image

    def clipped(kept: Tensor) -> Tensor:
        return shorten(change, kept).clamp(threat.low - image, threat.high - image)

    none = torch.zeros_like(change[:, :1])
    kept, beyond = none, none + 1
    kept = torch.where(threat.distance(clipped(beyond))[:, None] <= threat.eps, beyond, kept)
    for _ in range(_HALVINGS):
        middle = (kept + beyond) / 2
        inside = threat.distance(clipped(middle))[:, None] <= threat.eps
        kept, beyond = torch.where(inside, middle, kept), torch.where(inside, beyond, middle)
    nearest: Tensor = (image + clipped(kept)).to(x.dtype).view_as(x)
    return nearest


def _unit(v: Tensor) -> Tensor:
    """Divide each image by its Euclidean norm, whose squares neither overflow nor underflow; zero stays zero."""
    flat = v.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    unit: Tensor = (flat / torch.where(length > 0, length, 1.0)).view_as(v)
    return unit


def _per_image(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.view(-1, *(1,) * (x.ndim - 1))


GEOMETRIES: Final[dict[str, Geometry]] = {"linf": Linf(), "l2": L2(), "l1": L1()}
