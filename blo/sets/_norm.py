"""A Euclidean norm that can be differentiated everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def euclidean_norm(v: Tensor) -> Tensor:
    """Return the Euclidean norm, `(*lanes, 1)`, without overflow or underflow and with the derivative zero at zero."""
    # `size |v / size|` does not depend on `size`, which may thus be a constant in the derivative.
    size = v.detach().abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    squares = (v / size).square().sum(-1, keepdim=True)
    zero = squares == 0
    return torch.where(zero, 0.0, size * torch.where(zero, 1.0, squares).sqrt())
