"""Gradient alignment: whether the loss rises in the same direction all over the ball around an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adv_train.attacks.judging import adapted, frozen, full_resolution
from adv_train.measures.slope import scaled, slope
from adv_train.threat import Threat


def alignment(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> float:
    """Return the mean over images of cos(gradient at x, gradient at x + eta), eta uniform in the threat's ball.

    The gradients are those of the cross-entropy in the image (Andriushchenko and Flammarion, NeurIPS 2020, section 3).
    The score is 1 where the loss is linear in the ball, so that one step finds its maximum, and falls towards 0 when
    training overfits to an attack of one step. As in the regulariser of that paper, x + eta may leave the range of
    images. It costs 4 F for these images: a forward pass and the gradient in the image at two points each.

    Args:
        model: Maps images to logits, with its normalisation inside, in any precision. It is measured in eval mode and
            handed back as it was: modes, statistics and `.grad` do not change.
        x: Images, shape `(batch, channels, height, width)`, floating point, on the model's device.
        y: Labels, shape `(batch,)`, int64.
        threat: Norm and radius of the ball.
        generator: Draws eta on its own device; one of the CPU draws the same numbers for every device.

    Returns:
        A number in [-1, 1], over the images where both gradients are finite and neither vanishes; NaN where no image is
        left.

    Raises:
        UserError: When the model returns no logits.
    """
    found = cosines(model, x, y, threat, generator)
    counted = found[~found.isnan()]
    return float(counted.mean()) if len(counted) else math.nan


def cosines(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """Return the same for each image, shape `(batch,)`; NaN where there is no angle. See `alignment`."""
    images = full_resolution(x)
    drawn = torch.empty(images.shape, dtype=images.dtype, device=generator.device)
    eta = threat.noise(drawn, generator=generator).to(x.device)
    with frozen(model):
        forward = adapted(model, x)
        here, there = (scaled(slope(forward, point, y)).flatten(1) for point in (images, images + eta))
    # Zero over zero, or over what is not finite, is the NaN that says so.
    found: Tensor = ((here * there).sum(1) / (here.norm(dim=1) * there.norm(dim=1))).clamp(-1, 1)
    return found
