"""Gradient alignment: how far the input gradient keeps its direction in the ball around an image."""

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
    The score is 1 if the loss is linear in the ball, so that one step finds its maximum. It falls towards 0 when
    training overfits to an attack of one step. As in the regulariser of that paper, x + eta may leave the range of
    images. The cost is that of 4 forward passes over these images: a forward pass and an input gradient at two points.

    Args:
        model: Maps images to logits, with its normalisation inside, in any precision. It is evaluated in eval mode;
            its modes, statistics and `.grad` are the same afterwards.
        x: Images, shape `(batch, channels, height, width)`, floating point, on the model's device.
        y: Labels, shape `(batch,)`, int64.
        threat: Norm and radius of the ball.
        generator: Draws eta on its own device; a generator on the CPU draws the same numbers whatever the model's
            device.

    Returns:
        A number in [-1, 1], over the images where both gradients are finite and neither vanishes; NaN if there is no
        such image.

    Raises:
        UserError: If the model does not return logits.
    """
    found = cosines(model, x, y, threat, generator)
    counted = found[~found.isnan()]
    return float(counted.mean()) if len(counted) else math.nan


def cosines(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """Return the cosine of `alignment` per image, shape `(batch,)`; NaN if a gradient vanishes or is not finite."""
    images = full_resolution(x)
    drawn = torch.empty(images.shape, dtype=images.dtype, device=generator.device)
    eta = threat.noise(drawn, generator=generator).to(x.device)
    with frozen(model):
        forward = adapted(model, x)
        here, there = (scaled(slope(forward, point, y)).flatten(1) for point in (images, images + eta))
    # A vanishing gradient makes 0/0, and a gradient that is not finite makes NaN too: both are reported as NaN.
    found: Tensor = ((here * there).sum(1) / (here.norm(dim=1) * there.norm(dim=1))).clamp(-1, 1)
    return found
