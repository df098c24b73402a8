"""The parts of projected gradient ascent that depend on the norm: start, step and projection; one class per norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import torch
from torch import Tensor

from adv_train import ranks
from adv_train.threat import Threat

_HALVINGS = 50
"""Number of bisection steps: 50 halvings reduce an interval of length 1 to about the rounding of double precision."""


class Geometry(Protocol):
    """Start, step and projection for the balls of one norm; images have shape ``(batch, C, H, W)``."""

    @property
    def radii(self) -> tuple[float, ...]:
        """Radii of the ball in units of eps, in their order; the last one is 1.

        Each is used for the same number of steps, the last one also for the remainder.
        """

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw a start in the ball around each image; it may leave the range of images."""

    def step(self, gradient: Tensor) -> Tensor:
        """Return the direction of a step, of length 1."""

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Return the nearest allowed image."""


class Linf:
    """The maximum norm: a box, intersected with the range of images."""

    radii = (1.0,)

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw uniformly in the box."""
        noise = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
        return x + threat.eps * ranks.uniform(noise, -1, 1, generator=generator).to(x.device)

    def step(self, gradient: Tensor) -> Tensor:
        """Return the sign of the gradient, the steepest direction in this norm."""
        return gradient.sign()

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Clip each pixel."""
        return z.clamp((x - threat.eps).clamp(min=threat.low), (x + threat.eps).clamp(max=threat.high))


class L2:
    """The Euclidean ball, intersected with the range of images."""

    radii = (1.0,)

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw uniformly in the ball: a normal direction, and a radius whose n-th power is uniform, for n pixels."""
        like = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
        noise, size = ranks.normal(like, generator=generator), ranks.uniform(like[:, 0, 0, 0], generator=generator)
        radius = threat.eps * size ** (1 / x[0].numel())
        return x + (_per_image(radius, x) * _unit(noise)).to(x.device)

    def step(self, gradient: Tensor) -> Tensor:
        """Return the gradient, scaled to a unit vector."""
        return _unit(gradient)

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Scale the change and clip it, with the largest factor up to 1 for which the result lies in the ball.

        By the optimality conditions, with a multiplier for the ball, the nearest point has this form.
        """
        return _shortened(z, x, threat, lambda change, kept: kept * change)


class L1:
    """The ball in the sum of absolute changes, intersected with the range of images.

    Steps follow the gradient itself, since steepest ascent in this norm moves a single pixel. The radius of the ball
    shrinks during the ascent, as in l1-APGD (Croce and Hein, ICML 2021): with a fixed radius, ascent stops at the first
    of many local maxima.
    """

    radii = (3.0, 2.0, 1.0)

    def start(self, x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Draw uniformly in the ball, from n + 1 exponential variables for n pixels, and random signs.

        The variables over their sum are uniform in a simplex; leaving out one makes n coordinates with a sum below 1.
        """
        shares = torch.empty(len(x), x[0].numel() + 1, dtype=x.dtype, device=generator.device)
        shares = ranks.exponential(shares, generator=generator)
        shares = shares[:, 1:] / shares.sum(1, keepdim=True)
        sign = ranks.coins(shares, generator=generator) * 2 - 1
        return x + threat.eps * (sign * shares).view(x.shape).to(x.device)

    def step(self, gradient: Tensor) -> Tensor:
        """Return the gradient, scaled to a unit vector in the Euclidean norm."""
        return _unit(gradient)

    def project(self, z: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """Soft-threshold the change and clip it, with the smallest threshold for which the result lies in the ball.

        By the optimality conditions, with a multiplier for the ball, the nearest point has this form.
        """

        def less(change: Tensor, kept: Tensor) -> Tensor:
            loss = (1 - kept) * change.abs().amax(1, keepdim=True)
            return change.sign() * (change.abs() - loss).clamp(min=0)

        return _shortened(z, x, threat, less)


def _shortened(z: Tensor, x: Tensor, threat: Threat, shorten: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Find by bisection the largest ``kept`` for which ``shorten(change, kept)``, clipped, lies in the ball.

    Args:
        z: Images to project.
        x: Centres of the balls.
        threat: The ball and the range of images.
        shorten: Maps a change ``(batch, pixels)`` and ``kept`` ``(batch, 1)`` to a shorter change, whose norm grows
            from 0 to that of the change as ``kept`` grows from 0 to 1.

    Returns:
        The images moved by the shortened and clipped change.
    """
    # In double precision, so that only the rounding of the result can leave the ball; MPS has no double precision.
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
    """Divide each image by its Euclidean norm, without overflow or underflow in its squares; zero stays zero."""
    flat = v.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    unit: Tensor = (flat / torch.where(length > 0, length, 1.0)).view_as(v)
    return unit


def _per_image(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.view(-1, *(1,) * (x.ndim - 1))


GEOMETRIES: Final[dict[str, Geometry]] = {"linf": Linf(), "l2": L2(), "l1": L1()}
