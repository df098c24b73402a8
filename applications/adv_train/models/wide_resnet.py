"""Wide ResNets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from adv_train.errors import UserError
from adv_train.models.layers import Normalise, activation_factory
from adv_train.models.registry import MODELS
from adv_train.precision import at_full_resolution


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and the non-linearity, with dropout between, added to a shortcut.

    Where the width changes, the shortcut is a 1x1 convolution of the input after BatchNorm and the non-linearity.

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        stride: Of the first convolution and of the shortcut.
        activation: Makes a non-linearity.
        dropout: Share of the channels' pixels that are left out.
        one_sided: Pad the input of a convolution of stride 2 below and to the right alone.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        stride: int,
        activation: Callable[[], nn.Module],
        *,
        dropout: float,
        one_sided: bool,
    ) -> None:
        super().__init__()
        self.pads = one_sided and stride == 2
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=0 if self.pads else 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.act = activation()
        self.shortcut = None if width_in == width else nn.Conv2d(width_in, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, width, h / stride, w / stride)``."""
        active: Tensor = self.act(self.bn1(x))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(active)
        residual = self.conv1(F.pad(active, (0, 1, 0, 1)) if self.pads else active)
        out: Tensor = shortcut + self.conv2(self.dropout(self.act(self.bn2(residual))))
        return out


class WideResNet(nn.Module):
    """A Wide ResNet (Zagoruyko and Komodakis, BMVC 2016).

    Args:
        channels: Of the images.
        classes: Number of logits.
        image_size: Side of the images in pixels; any size works, since the features are averaged over the image.
        mean: Of each channel, for the normalisation inside.
        std: Of each channel, for the normalisation inside.
        activation: ``"relu"``, or ``"silu"`` as in the networks of Gowal et al. (2020).
        raw: Leave the normalisation out, for weights that were trained without.
        dropout: Share of what passes between the convolutions of a block that is left out in training.
        one_sided: Pad the inputs of convolutions of stride 2 below and to the right alone, as the networks of Gowal
            et al. (2020) do.

    Raises:
        UserError: When there is no such activation, or dropout is no share.
    """

    #: Layers in all, and how many times 16, 32 and 64 channels the three groups of blocks have.
    depth: ClassVar[int]
    width: ClassVar[int]

    def __init__(
        self,
        channels: int,
        classes: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        activation: str = "relu",
        raw: bool = False,
        dropout: float = 0.0,
        one_sided: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UserError(f"`dropout` must be at least 0 and below 1, but is {dropout}.")
        act = activation_factory(activation)
        self.normalise = nn.Identity() if raw else Normalise(mean, std)
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        width_in = 16
        for group in range(3):
            width = self.width * 16 * 2**group
            for index in range((self.depth - 4) // 6):
                stride = 2 if group and not index else 1
                blocks.append(WideBlock(width_in, width, stride, act, dropout=dropout, one_sided=one_sided))
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(width_in)
        self.act = act()
        self.head = nn.Linear(width_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits ``(batch, classes)`` of images ``(batch, channels, height, width)`` in [0, 1]."""
        stem = at_full_resolution(lambda x: self.stem(self.normalise(x)), images)
        features: Tensor = self.blocks(stem)
        pooled = self.act(self.bn(features)).mean(dim=(2, 3))
        return at_full_resolution(self.head, pooled)


@MODELS.register("wrn-16-8")
class WRN16x8(WideResNet):
    """Wide ResNet of 16 layers, 8 times as wide; 11 million parameters."""

    depth, width = 16, 8


@MODELS.register("wrn-28-10")
class WRN28x10(WideResNet):
    """Wide ResNet of 28 layers, 10 times as wide; 36.5 million parameters."""

    depth, width = 28, 10


@MODELS.register("wrn-34-10")
class WRN34x10(WideResNet):
    """Wide ResNet of 34 layers, 10 times as wide; 46.2 million parameters."""

    depth, width = 34, 10


@MODELS.register("wrn-70-16")
class WRN70x16(WideResNet):
    """Wide ResNet of 70 layers, 16 times as wide; 266.8 million parameters."""

    depth, width = 70, 16
