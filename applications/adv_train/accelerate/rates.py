"""Numbers that change from step to step, kept as tensors: a captured step would keep the value of a Python number."""

from __future__ import annotations

import torch
from torch import Tensor


def held(before: float | Tensor, value: float, device: torch.device | None) -> float | Tensor:
    """Return a number for the optimiser: unchanged, or as a tensor of shape `()` if a device is given.

    If `before` is such a tensor, it is filled with the number and returned, so its address does not change.
    """
    if device is None:
        return value
    if isinstance(before, Tensor) and before.device.type == device.type:
        return before.fill_(value)
    return torch.tensor(value, device=device)  # single precision, as the weights
