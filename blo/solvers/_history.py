"""The last few vectors of each lane, oldest first, as one tensor of shape `(*lanes, memory, n)`."""

from __future__ import annotations

import torch
from torch import Tensor


def zeros(z: Tensor, memory: int) -> Tensor:
    """Return a history in which nothing has happened, for vectors like z."""
    return z.new_zeros((*z.shape[:-1], memory, z.shape[-1]))


def push(past: Tensor, new: Tensor) -> Tensor:
    """Return the history with a vector in place of its oldest."""
    return torch.cat([past[..., 1:, :], new.unsqueeze(-2)], dim=-2)
