"""Wide ResNets: pre-activation ResNets of three stages, many times as wide as the original ones for small images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar

from torch import nn

from adv_train.errors import UserError
from adv_train.models.layers import activation_factory
from adv_train.models.preact_blocks import Padding, PreActBlock
from adv_train.models.preact_resnet import PreActNetwork
from adv_train.models.registry import MODELS
from adv_train.values import Count, Range


class WideResNet(PreActNetwork):
    """WRN-depth-factor: a stem of 16 channels, then three stages of (depth - 4) / 6 blocks.

    Convolutions are initialised from He's normal distribution in fan-out mode, and the bias of the last layer with
    zero.

    Source: Zagoruyko and Komodakis (BMVC 2016, "Wide residual networks").

    Args:
        channels: Channels of the images.
        classes: Number of logits.
        image_size: Side of the images in pixels; any size works, since the features are averaged over the image.
        mean: Mean of each channel, for the normalisation inside.
        std: Standard deviation of each channel, for the normalisation inside.
        activation: ``"relu"`` as published, or ``"silu"`` for a smooth network.
        dropout: Probability of a zero between the two convolutions of a block, in train mode.
        widening: Widening factor to use instead of the one in the name.
        padding: Padding of convolutions of stride 2: even on all sides as published, or one pixel at the end of rows
            and columns, as in the networks of Gowal et al. (2020, "Uncovering the limits of adversarial training").

    Raises:
        UserError: If there is no such activation, or if padding is `end` and 4 does not divide the side of the images.
    """

    depth: ClassVar[int]
    #: Widening factor: of the class the one in its name, of a network the one that it has.
    factor: int

    def __init__(
        self,
        channels: int,
        classes: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        activation: str = "relu",
        dropout: Annotated[float, Range(0, 0.99)] = 0.0,
        widening: Count | None = None,
        padding: Padding = "even",
    ) -> None:
        if padding == "end" and image_size % 4:
            raise UserError(f"padding=end needs images whose side is divisible by 4, but it is {image_size} pixels.")
        act = activation_factory(activation)
        blocks = (self.depth - 4) // 6
        factor = self.factor if widening is None else widening
        super().__init__(
            channels,
            classes,
            mean,
            std,
            stem=16,
            stages=[(16 * factor, blocks, 1), (32 * factor, blocks, 2), (64 * factor, blocks, 2)],
            block=partial(PreActBlock, activation=act, shortcut="activated", dropout=dropout, padding=padding),
            expansion=PreActBlock.expansion,
            activation=act,
            final_norm=True,
        )
        self.factor = factor
        self.padding = padding
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)


@MODELS.register("wrn-16-8")
class WRN16x8(WideResNet):
    """Wide ResNet of 16 layers and widening factor 8 (11 million parameters)."""

    depth, factor = 16, 8


@MODELS.register("wrn-22-8")
class WRN22x8(WideResNet):
    """Wide ResNet of 22 layers and factor 8 (17 million): the code of Zhang et al. (ICML 2022) for their WRN-16-8."""

    depth, factor = 22, 8


@MODELS.register("wrn-28-10")
class WRN28x10(WideResNet):
    """Wide ResNet of 28 layers and widening factor 10 (36 million parameters)."""

    depth, factor = 28, 10


@MODELS.register("wrn-34-10")
class WRN34x10(WideResNet):
    """Wide ResNet of 34 layers and widening factor 10 (46 million parameters)."""

    depth, factor = 34, 10


@MODELS.register("wrn-70-16")
class WRN70x16(WideResNet):
    """Wide ResNet of 70 layers and widening factor 16 (267 million parameters)."""

    depth, factor = 70, 16
