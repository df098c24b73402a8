"""Descent directions of a gradient step."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Direction: TypeAlias = Literal["gradient", "sign", "normalized"]


def check(direction: str) -> None:
    """Refuse an unknown direction.

    Raises:
        ValueError: naming the ones there are.
    """
    if direction not in ("gradient", "sign", "normalized"):
        raise ValueError(f"`direction` must be 'gradient', 'sign' or 'normalized', but is {direction!r}.")


def scaled(gradient: Tensor, direction: Direction) -> Tensor:
    """Return the steepest descent direction's negative: raw, for the max-norm, or for the 2-norm of each lane."""
    if direction == "gradient":
        return gradient
    if direction == "sign":
        return gradient.sign()
    norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    # A lane whose gradient is zero is stationary: it stays, and its derivative stays finite.
    return gradient / torch.where(norm > 0, norm, torch.ones_like(norm))
