"""Pre-activation residual blocks: BatchNorm and the non-linearity come before each convolution, not after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

Shortcut: TypeAlias = Literal["raw", "activated"]
Padding: TypeAlias = Literal["even", "end"]


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and the non-linearity, added to a shortcut.

    If the shape changes, the shortcut is a 1x1 convolution. It is applied to the `raw` block input in the
    pre-activation ResNets behind the published robust accuracies, and to the `activated` input in He et al. (2016,
    "Identity mappings in deep residual networks") and in wide ResNets.

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        activation: Makes a non-linearity.
        shortcut: Input of the 1x1 convolution.
        dropout: Probability of a zero before the second convolution, in train mode.
        padding: Padding of a 3x3 convolution of stride 2: `even` on all sides, or one pixel at the `end` of rows and
            columns.
    """

    expansion: Final = 1

    def __init__(
        self,
        width_in: int,
        width: int,
        stride: int,
        activation: Callable[[], nn.Module],
        *,
        shortcut: Shortcut = "raw",
        dropout: float = 0.0,
        padding: Padding = "even",
    ) -> None:
        super().__init__()
        same_shape = stride == 1 and width_in == width
        at_end = padding == "end" and stride == 2
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = (_EndPadded if at_end else nn.Conv2d)(
            width_in, width, 3, stride=stride, padding=0 if at_end else 1, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.act = activation()
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(width_in, width, 1, stride=stride, bias=False)
        self.activated_shortcut = shortcut == "activated" and not same_shape

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, width, h / stride, w / stride)``."""
        activated: Tensor = self.act(self.bn1(x))
        residual: Tensor = self.conv2(self.drop(self.act(self.bn2(self.conv1(activated)))))
        shortcut: Tensor = self.shortcut(activated if self.activated_shortcut else x)
        return residual + shortcut


class PreActBottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1, each after BatchNorm and the non-linearity; the output is four times as wide.

    The arguments are those of `PreActBlock`; `width` is the channels of the first two convolutions, and `stride` is the
    stride of the second.
    """

    expansion: Final = 4

    def __init__(
        self,
        width_in: int,
        width: int,
        stride: int,
        activation: Callable[[], nn.Module],
        *,
        shortcut: Shortcut = "activated",
    ) -> None:
        super().__init__()
        width_out = self.expansion * width
        same_shape = stride == 1 and width_in == width_out
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width_out, 1, bias=False)
        self.act = activation()
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(width_in, width_out, 1, stride=stride, bias=False)
        self.activated_shortcut = shortcut == "activated" and not same_shape

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width_in, h, w)`` to ``(batch, 4 width, h / stride, w / stride)``."""
        activated: Tensor = self.act(self.bn1(x))
        residual: Tensor = self.conv2(self.act(self.bn2(self.conv1(activated))))
        residual = self.conv3(self.act(self.bn3(residual)))
        shortcut: Tensor = self.shortcut(activated if self.activated_shortcut else x)
        return residual + shortcut


class _EndPadded(nn.Conv2d):
    """A convolution padded by one pixel at the right and at the bottom: `SAME` of TensorFlow at stride 2."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)))
