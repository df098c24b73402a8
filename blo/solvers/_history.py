"""A history of the last few vectors of each lane, oldest first, in one tensor of shape `(*lanes, memory, n)`."""

from __future__ import annotations

import torch
from torch import Tensor


def zeros(z: Tensor, memory: int) -> Tensor:
    """Return an empty history, all zeros, for vectors like z."""
    return z.new_zeros((*z.shape[:-1], memory, z.shape[-1]))


def push(past: Tensor, new: Tensor) -> Tensor:
    """Return the history without its oldest vector and with `new` at the end."""
    # A new tensor instead of a write in place: `Unrolled` differentiates through earlier histories.
    return torch.cat([past[..., 1:, :], new.unsqueeze(-2)], dim=-2)
