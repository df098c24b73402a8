"""Numbers that change from step to step: a captured step sees them move only as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def held(before: float | Tensor, value: float, device: torch.device | None) -> float | Tensor:
    """Return a number as it is, or, with a device, as a tensor there of shape `()`: the one before, filled anew."""
    if device is None:
        return value
    if isinstance(before, Tensor) and before.device.type == device.type:
        return before.fill_(value)
    return torch.tensor(value, device=device)  # single precision, as the weights
