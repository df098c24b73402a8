"""The loss over a plane around each image, spanned by the attack's direction and a random direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adv_train.attacks.checks import check_labels, check_samples, checked
from adv_train.attacks.judging import adapted, frozen, full_resolution
from adv_train.errors import UserError
from adv_train.measures.slope import scaled, slope
from adv_train.threat import Threat

Grid = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Landscape:
    """Mean loss over images at the points of a grid.

    Attributes:
        steps: Coordinates along either direction, in units of eps, shape `(points,)`.
        loss: Mean cross-entropy in nats at `[adversarial, random]`, shape `(points, points)`.
        clamped: Share of the pixel values that were clamped to the range of images, of the same shape.
        flat: Number of images with a vanishing gradient of the loss; their adversarial direction is zero.
    """

    steps: Grid
    loss: Grid
    clamped: Grid
    flat: int


def landscape(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    points: int = 21,
    reach: float = 2.0,
    seed: int = 0,
    batch_size: int = 512,
    count: Callable[[int], object] = lambda _: None,
) -> Landscape:
    """Return the mean cross-entropy at clamp(x + eps (a g + b r)) for a and b from -reach to reach.

    In linf, g is the sign of the loss's gradient at x, and r a random sign for each pixel. In l2 and l1, g is the
    gradient and r a normal direction orthogonal to it, each of length 1 in the norm of the threat. Images are clamped
    to the threat's range, as an attack must do; for |a| + |b| > 1 they may lie outside the ball.

    Args:
        model: Maps images to logits, with its normalisation inside. It is evaluated in eval mode, and its state is the
            same afterwards.
        x: Images, shape `(batch, channels, height, width)`, floating point in the threat's range.
        y: Labels, shape `(batch,)`, int64.
        threat: Norm, eps and range of images.
        points: Number of grid points along each direction; if it is odd, the grid contains the clean images.
        reach: Largest coordinate, in units of eps.
        seed: Seed of the random directions, which are drawn on the CPU; in linf they do not depend on the model.
        batch_size: Number of images in a forward pass.
        count: Called with the number of images after each forward pass.

    Raises:
        UserError: If images or labels have the wrong shape or range, or a loss or gradient is not finite.
    """
    check_samples(x, y, threat)
    images, size = full_resolution(x), len(x)
    steps = torch.linspace(-reach, reach, points, dtype=torch.float64)
    # Make the coordinates antisymmetric: then the middle one is exactly 0, which linspace may miss by rounding.
    steps = (steps - steps.flip(0)) / 2
    grid = torch.cartesian_prod(steps, steps)
    loss = torch.zeros(len(grid), dtype=torch.float64)
    clamped = torch.zeros(len(grid), dtype=torch.float64)
    noise = _noise(images.shape, threat, seed).to(images)
    flat = 0
    with frozen(model):
        forward = adapted(model, x)
        with torch.no_grad():
            check_labels(y, checked(forward(images[:1]), 1).shape[1])
        for part in range(0, size, batch_size):
            here = slice(part, part + batch_size)
            gradient = slope(forward, images[here], y[here])
            if not bool(gradient.isfinite().all()):
                raise UserError(
                    "The gradient of the loss in the image is not finite: look for sqrt, norm or log at 0 in the "
                    "model, or for weights that overflow."
                )
            flat += int((gradient == 0).flatten(1).all(1).sum())
            plane = _directions(gradient, noise[here], threat)
            together = max(1, batch_size // len(gradient))
            for first in range(0, len(grid), together):
                which = slice(first, first + together)
                found, cut = _at(forward, images[here], y[here], plane, threat, grid[which])
                loss[which] += found / size
                clamped[which] += cut * len(gradient) / size
                count(len(gradient) * len(found))
    if not bool(loss.isfinite().all()):
        raise UserError(f"The loss is not finite at {int((~loss.isfinite()).sum())} of {len(grid)} points of the grid.")
    shape = (points, points)
    return Landscape(steps.numpy(), loss.view(shape).numpy(), clamped.view(shape).numpy(), flat)


def _at(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    plane: tuple[Tensor, Tensor],
    threat: Threat,
    points: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses and the share of clamped pixel values at some points, each of shape `(points,)`."""
    a, b = (threat.eps * points).to(x.dtype).to(x.device).view(-1, 2, *(1,) * x.ndim).unbind(1)
    moved = x + a * plane[0] + b * plane[1]
    allowed = moved.clamp(threat.low, threat.high)
    cut = (moved != allowed).flatten(1).float().mean(1)
    with torch.no_grad():
        logits = forward(allowed.flatten(0, 1))
    each = cross_entropy(logits.to(x.dtype), y.repeat(len(points)), reduction="none")
    # Summed on the CPU: not every device has double precision.
    return each.cpu().double().view(len(points), len(x)).sum(1), cut.cpu().double()


def _noise(shape: torch.Size, threat: Threat, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if threat.norm == "linf":
        return torch.randint(2, shape, generator=generator) * 2.0 - 1
    return torch.randn(shape, generator=generator)


def _directions(gradient: Tensor, noise: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    if threat.norm == "linf":
        return gradient.sign(), noise
    rise = scaled(gradient).flatten(1)
    other = noise.flatten(1)
    square = (rise * rise).sum(1, keepdim=True)
    along = (rise * other).sum(1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
    return _of_length_one(rise, threat).view_as(gradient), _of_length_one(other - along * rise, threat).view_as(noise)


def _of_length_one(direction: Tensor, threat: Threat) -> Tensor:
    length = threat.distance(direction)[:, None]
    return direction / torch.where(length > 0, length, torch.ones_like(length))
