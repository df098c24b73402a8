"""Adversarial images rounded to one byte per value, as a file holds them, and classified again after rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from adv_train.attacks.checks import TOLERANCE
from adv_train.attacks.judging import predict
from adv_train.attacks.room import Forward
from adv_train.threat import Threat

LEVELS = 255


def rounded(images: Tensor, threat: Threat) -> Tensor:
    """Round images in the threat's range to bytes: uint8, of the same shape."""
    unit = (images - threat.low) / (threat.high - threat.low)
    return (unit * LEVELS).round().clamp(0, LEVELS).to(torch.uint8)


def unrounded(stored: Tensor, threat: Threat) -> Tensor:
    """Return the images in the threat's range that the bytes encode, float32."""
    return threat.low + stored.float() / LEVELS * (threat.high - threat.low)


def judge_rounded(model: Forward, stored: Tensor, x: Tensor, threat: Threat, batch_size: int) -> Tensor:
    """Classify rounded images ``(N, C, H, W)``, after checking that they leave the budget by rounding alone.

    Rounding changes a value by at most half a grey level, so it moves an image by at most the norm of a perturbation
    that changes every value by half a grey level.

    Args:
        model: Maps images to logits, frozen.
        stored: The rounded images, uint8.
        x: The clean images.
        threat: The threat of the attack.
        batch_size: Number of images in a forward pass.

    Returns:
        Classes ``(N,)``, -1 where the logits are not finite.

    Raises:
        RuntimeError: If an image is farther from its clean image than the budget plus that norm.
    """
    images = unrounded(stored, threat)
    half = (threat.high - threat.low) / LEVELS / 2
    most = threat.eps + threat.largest(x.shape[1:], half + 2.0**-24) + TOLERANCE * max(1.0, threat.eps)
    distance = threat.distance(images - x)
    if not bool((distance <= most).all()):
        raise RuntimeError(
            f"Rounded images left the budget by more than half a grey level a value: the farthest moved by "
            f"{distance.max().item():.6g}, and {most:.6g} is the most."
        )
    return predict(model, images.to(x.dtype), batch_size)
