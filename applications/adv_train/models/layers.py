"""Parts that the models share: the normalisation inside a model, the non-linearities, and stacks of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from adv_train.errors import unknown

#: Width of each stage of a ResNet and stride of its first block.
RESNET_STAGES: Final = ((64, 1), (128, 2), (256, 2), (512, 2))
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


def activation_factory(name: str) -> Callable[[], nn.Module]:
    """Look up a non-linearity; each call of the result makes a new layer.

    Raises:
        UserError: If there is no such non-linearity.
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation of each channel.

    It is part of the model, so attacks and budgets refer to images in [0, 1], and a checkpoint contains the statistics
    with which its weights were trained.

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


def stack(
    block: Callable[[int, int, int], nn.Module], width_in: int, stages: Iterable[tuple[int, int, int]], expansion: int
) -> tuple[nn.Sequential, int]:
    """Stack residual blocks.

    Args:
        block: Makes a block from its input channels, its width and its stride.
        width_in: Input channels of the first block.
        stages: Width, number of blocks, and stride of the first block of each stage.
        expansion: Output channels of a block for each channel of its width.

    Returns:
        The blocks, and the output channels of the last one.
    """
    blocks: list[nn.Module] = []
    for width, number, stride in stages:
        for index in range(number):
            blocks.append(block(width_in, width, stride if index == 0 else 1))
            width_in = width * expansion
    return nn.Sequential(*blocks), width_in
