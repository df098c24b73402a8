"""Pre-activation ResNets, those of the published tables among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from adv_train.models.layers import Normalise, activation_factory, stages
from adv_train.models.registry import MODELS
from adv_train.precision import at_full_resolution
from adv_train.values import Count


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and the non-linearity, added to a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the *raw* block input. He et al. (2016,
    "Identity mappings in deep residual networks") and many re-implementations feed it the activated input
    instead; the networks behind the published robust accuracies do not.

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        stride: Of the first convolution and of the shortcut.
        activation: Makes a non-linearity.
    """

    def __init__(self, width_in: int, width: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.act = activation()
        same_shape = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(width_in, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, width, h / stride, w / stride)``."""
        residual: Tensor = self.conv1(self.act(self.bn1(x)))
        residual = self.conv2(self.act(self.bn2(residual)))
        shortcut: Tensor = self.shortcut(x)
        return residual + shortcut


class PreActBottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 pixels, each after BatchNorm and the non-linearity, added to a shortcut.

    The shortcut is that of `PreActBlock`.

    Args:
        width_in: Channels of the input.
        width: Channels of the output, four times those in between.
        stride: Of the 3x3 convolution and of the shortcut.
        activation: Makes a non-linearity.
    """

    def __init__(self, width_in: int, width: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        narrow = width // 4
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, narrow, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, width, 1, bias=False)
        self.act = activation()
        same_shape = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(width_in, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, width, h / stride, w / stride)``."""
        residual: Tensor = self.conv1(self.act(self.bn1(x)))
        residual = self.conv2(self.act(self.bn2(residual)))
        residual = self.conv3(self.act(self.bn3(residual)))
        shortcut: Tensor = self.shortcut(x)
        return residual + shortcut


class PreActResNet(nn.Module):
    """A pre-activation ResNet for small images: stride-1 stem, no max-pooling, final BatchNorm and ReLU.

    Source: He et al. (2016), with the details of Rice, Wong and Kolter (2020, "Overfitting in adversarially
    robust deep learning") that Zhang et al. (ICML 2022) trained with.

    Args:
        channels: Of the images.
        classes: Number of logits.
        image_size: Side of the images in pixels; any size works, since the features are averaged over the
            image.
        mean: Of each channel, for the normalisation inside.
        std: Of each channel, for the normalisation inside.
        activation: ``"relu"`` as published, or ``"silu"`` where a smooth network is wanted.
        raw: Leave the normalisation out, for weights that were trained without.
        base_width: Channels of the stem; 64 as published, fewer for a network that a processor trains in minutes.

    Raises:
        UserError: When there is no such activation.
    """

    #: Blocks of each stage, their class, and how many times wider than the stage's 64 to 512 channels they end.
    depths: ClassVar[tuple[int, ...]]
    block: ClassVar[type[nn.Module]] = PreActBlock
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
        base_width: Count = 64,
    ) -> None:
        super().__init__()
        act = activation_factory(activation)
        self.normalise = nn.Identity() if raw else Normalise(mean, std)
        self.stem = nn.Conv2d(channels, base_width, 3, padding=1, bias=False)
        self.blocks, width = stages(self.block, act, base_width, self.expansion, self.depths)
        self.bn = nn.BatchNorm2d(width)
        self.act = act()
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits ``(batch, classes)`` of images ``(batch, channels, height, width)`` in [0, 1]."""
        stem = at_full_resolution(lambda x: self.stem(self.normalise(x)), images)
        features: Tensor = self.blocks(stem)
        # A mean rather than a pooling layer: its size adapts to the image, and it differentiates twice
        # cheaply.
        pooled = self.act(self.bn(features)).mean(dim=(2, 3))
        return at_full_resolution(self.head, pooled)


@MODELS.register("preact-resnet-18")
class PreActResNet18(PreActResNet):
    """Pre-activation ResNet-18 for small images; 11.2 million parameters."""

    depths = (2, 2, 2, 2)


@MODELS.register("preact-resnet-34")
class PreActResNet34(PreActResNet):
    """Pre-activation ResNet-34 for small images; 21.3 million parameters."""

    depths = (3, 4, 6, 3)


@MODELS.register("preact-resnet-50")
class PreActResNet50(PreActResNet):
    """Pre-activation ResNet-50 for small images; 23.5 million parameters."""

    depths, block, expansion = (3, 4, 6, 3), PreActBottleneck, 4
