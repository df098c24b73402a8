"""Mean and standard deviation of each channel, for the normalisation inside the models."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 4096


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of each channel of a training split.

    Args:
        images: Shape ``(n, channels, height, width)``: uint8, or floating point in [0, 1].

    Returns:
        Means and (population) standard deviations, one for each channel, of images in [0, 1]. The standard deviation is
        at least 1/255, so that normalising a constant channel does not divide by zero.
    """
    moments = [_moments(images[:, channel]) for channel in range(images.shape[1])]
    means = tuple(mean for mean, _ in moments)
    return means, tuple(max(variance**0.5, 1 / 255) for _, variance in moments)


def _moments(values: Tensor) -> tuple[float, float]:
    if values.is_floating_point():
        values = values.flatten().double()
        return float(values.mean()), float(values.var(correction=0))
    # Counting the 256 levels is exact, and in parts needs no copy of all images.
    counts = sum(torch.bincount(part.flatten(), minlength=256) for part in values.split(_ROWS))
    weight = torch.as_tensor(counts).double() / values.numel()
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = float(weight @ level)
    return mean, float(weight @ (level - mean) ** 2)
