"""Pre-activation ResNets for small images, among them the ResNet-18 of the published tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from adv_train.models.layers import RESNET_STAGES, Normalise, activation_factory, stack
from adv_train.models.preact_blocks import PreActBlock, PreActBottleneck, Shortcut
from adv_train.models.registry import MODELS
from adv_train.precision import at_full_resolution
from adv_train.values import Count


class PreActNetwork(nn.Module):
    """A 3x3 stem of stride 1, pre-activation blocks, BatchNorm and the non-linearity, a mean over the image, a head.

    Args:
        channels: Channels of the images.
        classes: Number of logits.
        mean: Mean of each channel, for the normalisation inside.
        std: Standard deviation of each channel, for the normalisation inside.
        stem: Channels of the stem.
        stages: Width, number of blocks, and stride of the first block of each stage.
        block: Makes a block from its input channels, its width and its stride.
        expansion: Output channels of a block for each channel of its width.
        activation: Makes a non-linearity.
        final_norm: Whether BatchNorm and the non-linearity come before the head.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        stem: int,
        stages: Iterable[tuple[int, int, int]],
        block: Callable[[int, int, int], nn.Module],
        expansion: int,
        activation: Callable[[], nn.Module],
        final_norm: bool,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.stem = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.blocks, width = stack(block, stem, stages, expansion)
        self.bn = nn.BatchNorm2d(width) if final_norm else nn.Identity()
        self.act = activation() if final_norm else nn.Identity()
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(batch, classes)`` of images ``(batch, channels, height, width)`` in [0, 1]."""
        stem = at_full_resolution(lambda x: self.stem(self.normalise(x)), images)
        features: Tensor = self.blocks(stem)
        # A mean, not a pooling layer: it works for images of any size, and its second derivative is cheap.
        pooled = self.act(self.bn(features)).mean(dim=(2, 3))
        return at_full_resolution(self.head, pooled)


class PreActResNet(PreActNetwork):
    """A pre-activation ResNet for small images: stride-1 stem, no max-pooling.

    Source: He et al. (2016, "Identity mappings in deep residual networks"), with the details of Rice, Wong and Kolter
    (2020, "Overfitting in adversarially robust deep learning") that Zhang et al. (ICML 2022) trained with.

    Args:
        channels: Channels of the images.
        classes: Number of logits.
        image_size: Side of the images in pixels; any size works, since the features are averaged over the
            image.
        mean: Mean of each channel, for the normalisation inside.
        std: Standard deviation of each channel, for the normalisation inside.
        activation: ``"relu"`` as published, or ``"silu"`` for a smooth network.
        shortcut: Input of the 1x1 convolutions of shortcuts: the raw or the activated input of the block. By default
            as in the code of Zhang et al.: raw in ResNet-18 and 34, activated in ResNet-50.
        final_norm: Apply BatchNorm and the non-linearity before the last layer.
        base_width: Channels of the stem and width of the first stage; 64 as published, fewer to train on a CPU.

    Raises:
        UserError: If there is no such activation.
    """

    block: ClassVar[Callable[..., nn.Module]] = PreActBlock
    expansion: ClassVar[int] = PreActBlock.expansion
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
        shortcut: Shortcut | None = None,
        final_norm: bool = True,
        base_width: Count = 64,
    ) -> None:
        act = activation_factory(activation)
        widths = [(width * base_width // 64, stride) for width, stride in RESNET_STAGES]
        chosen: dict[str, Any] = {} if shortcut is None else {"shortcut": shortcut}
        super().__init__(
            channels,
            classes,
            mean,
            std,
            stem=base_width,
            stages=[(width, n, stride) for (width, stride), n in zip(widths, self.depths, strict=True)],
            block=partial(type(self).block, activation=act, **chosen),
            expansion=self.expansion,
            activation=act,
            final_norm=final_norm,
        )


@MODELS.register("preact-resnet-18")
class PreActResNet18(PreActResNet):
    """Pre-activation ResNet-18 for small images: stride-1 stem, no max-pooling, final BatchNorm and ReLU."""

    depths = (2, 2, 2, 2)


@MODELS.register("preact-resnet-34")
class PreActResNet34(PreActResNet):
    """Pre-activation ResNet-34 for small images."""

    depths = (3, 4, 6, 3)


@MODELS.register("preact-resnet-50")
class PreActResNet50(PreActResNet):
    """Pre-activation ResNet-50 for small images, of bottleneck blocks."""

    block, expansion = PreActBottleneck, PreActBottleneck.expansion
    depths = (3, 4, 6, 3)
