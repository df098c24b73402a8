"""ResNets for small images, with BatchNorm and the non-linearity after each convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Final

from torch import Tensor, nn

from adv_train.models.layers import RESNET_STAGES, Normalise, activation_factory, stack
from adv_train.models.registry import MODELS
from adv_train.precision import at_full_resolution


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to a shortcut: the input, or a 1x1 convolution with BatchNorm if the shape changes.

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        activation: Makes a non-linearity.
    """

    expansion: Final = 1

    def __init__(self, width_in: int, width: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = activation()
        self.shortcut = _projection(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, width, h / stride, w / stride)``."""
        residual: Tensor = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        output: Tensor = self.act(residual + self.shortcut(x))
        return output


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 (with the stride) and 1x1 to four times the width, added to a shortcut.

    The arguments are those of `BasicBlock`.
    """

    expansion: Final = 4

    def __init__(self, width_in: int, width: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, self.expansion * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.expansion * width)
        self.act = activation()
        self.shortcut = _projection(width_in, self.expansion * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, 4 width, h / stride, w / stride)``."""
        residual: Tensor = self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))
        output: Tensor = self.act(self.bn3(self.conv3(residual)) + self.shortcut(x))
        return output


def _projection(width_in: int, width_out: int, stride: int) -> nn.Module:
    if stride == 1 and width_in == width_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(width_in, width_out, 1, stride=stride, bias=False), nn.BatchNorm2d(width_out))


class ResNet(nn.Module):
    """A ResNet for small images: a 3x3 stem of stride 1, no max-pooling.

    Source: He et al. (CVPR 2016, "Deep residual learning for image recognition"), with the stem that is usual for
    images of 32 pixels.

    Args:
        channels: Channels of the images.
        classes: Number of logits.
        image_size: Side of the images in pixels; any size works, since the features are averaged over the image.
        mean: Mean of each channel, for the normalisation inside.
        std: Standard deviation of each channel, for the normalisation inside.
        activation: ``"relu"`` as published, or ``"silu"`` for a smooth network.

    Raises:
        UserError: If there is no such activation.
    """

    block: ClassVar[Callable[..., nn.Module]] = BasicBlock
    expansion: ClassVar[int] = BasicBlock.expansion
    depths: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        channels: int,
        classes: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        act = activation_factory(activation)
        self.normalise = Normalise(mean, std)
        self.stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.act = act()
        stages = [(width, n, stride) for (width, stride), n in zip(RESNET_STAGES, self.depths, strict=True)]
        self.blocks, width = stack(partial(type(self).block, activation=act), 64, stages, self.expansion)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(batch, classes)`` of images ``(batch, channels, height, width)`` in [0, 1]."""
        stem = at_full_resolution(lambda x: self.stem(self.normalise(x)), images)
        features: Tensor = self.blocks(self.act(self.bn(stem)))
        return at_full_resolution(self.head, features.mean(dim=(2, 3)))


@MODELS.register("resnet-18")
class ResNet18(ResNet):
    """ResNet-18 for small images: stride-1 stem, no max-pooling."""

    depths = (2, 2, 2, 2)


@MODELS.register("resnet-34")
class ResNet34(ResNet):
    """ResNet-34 for small images."""

    depths = (3, 4, 6, 3)


@MODELS.register("resnet-50")
class ResNet50(ResNet):
    """ResNet-50 for small images, of bottleneck blocks."""

    block, expansion = Bottleneck, Bottleneck.expansion
    depths = (3, 4, 6, 3)
