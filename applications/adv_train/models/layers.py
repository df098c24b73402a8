"""What the models share: the normalisation inside the model, and the choice of a non-linearity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adv_train.errors import unknown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


def activation_factory(name: str) -> Callable[[], nn.Module]:
    """Look up a non-linearity; each call of the result makes a new layer.

    Raises:
        UserError: When there is no such non-linearity.
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation of each channel.

    It is part of the model, so attacks and budgets live in the image space [0, 1], and a checkpoint carries
    the statistics its weights were trained with.

    Args:
        mean: One number a channel, in units of images in [0, 1].
        std: One number a channel, in the same units, above zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images of shape ``(batch, channels, height, width)``."""
        return (images - self.mean) / self.std


def stages(
    block: type[nn.Module], activation: Callable[[], nn.Module], width_in: int, expansion: int, depths: Sequence[int]
) -> tuple[nn.Sequential, int]:
    """Make the residual blocks of a ResNet: from stage to stage twice as wide, and half as large but for the first.

    Args:
        block: Of input channels, output channels, stride and `activation`.
        activation: Makes a non-linearity.
        width_in: Channels that come in.
        expansion: Channels that leave the first stage, over those that come in.
        depths: Blocks of each stage.

    Returns:
        The blocks, and the channels that come out.
    """
    blocks: list[nn.Module] = []
    first = expansion * width_in
    for stage, depth in enumerate(depths):
        width = first * 2**stage
        for index in range(depth):
            blocks.append(block(width_in, width, 2 if stage and not index else 1, activation))
            width_in = width
    return nn.Sequential(*blocks), width_in
