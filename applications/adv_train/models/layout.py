"""The memory layout of a model."""

from __future__ import annotations

import torch
from torch import nn

from adv_train.errors import UserError


def require_layout(model: nn.Module, device: torch.device) -> None:
    """Check that torch can train a model in the channels-last layout.

    On a CPU, the weight gradient of some convolutions writes outside its memory in this layout (torch 2.7 to 2.15), so
    that the process crashes.

    Raises:
        UserError: If the model has such a convolution and the device is a CPU.
    """
    for name, layer in model.named_modules():
        if device.type == "cpu" and isinstance(layer, nn.Conv2d) and _crashes(layer):
            raise UserError(
                f"In the channels-last layout torch crashes on a CPU when it trains `{name}`, a convolution of one "
                f"pixel with a stride and {layer.in_channels} channels. Leave out --channels-last, or choose a model "
                "with at least 8 channels there, such as --base-width 8."
            )


def _crashes(layer: nn.Conv2d) -> bool:
    single = layer.kernel_size == (1, 1) and layer.stride != (1, 1)
    return single and layer.groups == 1 and 1 < layer.in_channels < 8 and layer.weight.dtype == torch.float32
