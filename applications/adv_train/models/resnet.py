"""ResNets for small images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from adv_train.models.layers import Normalise, activation_factory, stages
from adv_train.models.registry import MODELS
from adv_train.precision import at_full_resolution


class Block(nn.Module):
    """Two 3x3 convolutions, each before BatchNorm, added to a shortcut; a non-linearity between and after.

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        stride: Of the first convolution and of the shortcut.
        activation: Makes a non-linearity.
    """

    def __init__(self, width_in: int, width: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = activation()
        self.shortcut = _shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, width, h / stride, w / stride)``."""
        residual = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        out: Tensor = self.act(residual + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 pixels, each before BatchNorm, added to a shortcut.

    Args:
        width_in: Channels of the input.
        width: Channels of the output, four times those in between.
        stride: Of the 3x3 convolution and of the shortcut.
        activation: Makes a non-linearity.
    """

    def __init__(self, width_in: int, width: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        narrow = width // 4
        self.conv1 = nn.Conv2d(width_in, narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.act = activation()
        self.shortcut = _shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, width, h / stride, w / stride)``."""
        residual = self.act(self.bn1(self.conv1(x)))
        residual = self.bn3(self.conv3(self.act(self.bn2(self.conv2(residual)))))
        out: Tensor = self.act(residual + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """A ResNet (He et al., CVPR 2016) for small images: stem of 3x3 pixels and stride 1, no max-pooling.

    Args:
        channels: Of the images.
        classes: Number of logits.
        image_size: Side of the images in pixels; any size works, since the features are averaged over the image.
        mean: Of each channel, for the normalisation inside.
        std: Of each channel, for the normalisation inside.
        activation: ``"relu"``, or ``"silu"`` where a smooth network is wanted.
        raw: Leave the normalisation out, for weights that were trained without.

    Raises:
        UserError: When there is no such activation.
    """

    #: As those of `adv_train.models.preact_resnet.PreActResNet`.
    depths: ClassVar[tuple[int, ...]]
    block: ClassVar[type[nn.Module]] = Block
    expansion: ClassVar[int] = 1

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
    ) -> None:
        super().__init__()
        act = activation_factory(activation)
        self.normalise = nn.Identity() if raw else Normalise(mean, std)
        self.stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.act = act()
        self.blocks, width = stages(self.block, act, 64, self.expansion, self.depths)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits ``(batch, classes)`` of images ``(batch, channels, height, width)`` in [0, 1]."""
        stem = at_full_resolution(lambda x: self.stem(self.normalise(x)), images)
        features: Tensor = self.blocks(self.act(self.bn(stem)))
        return at_full_resolution(self.head, features.mean(dim=(2, 3)))


@MODELS.register("resnet-18")
class ResNet18(ResNet):
    """ResNet-18 for small images; 11.2 million parameters."""

    depths = (2, 2, 2, 2)


@MODELS.register("resnet-34")
class ResNet34(ResNet):
    """ResNet-34 for small images; 21.3 million parameters."""

    depths = (3, 4, 6, 3)


@MODELS.register("resnet-50")
class ResNet50(ResNet):
    """ResNet-50 for small images; 23.5 million parameters."""

    depths, block, expansion = (3, 4, 6, 3), Bottleneck, 4


def _shortcut(width_in: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and width_in == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
