"""The solution of a solve that made no step, as a function of theta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class Still(Function):
    """`z` with a graph to the leaves, so that a backward pass returns zeros instead of failing for lack of a graph."""

    @staticmethod
    def attach(z: Tensor, leaves: Sequence[Tensor]) -> Tensor:
        """Return z as a constant function of the leaves."""
        attached: Tensor = Still.apply(z, *leaves)
        return attached

    @staticmethod
    def forward(z: Tensor, *leaves: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *leaves = inputs
        ctx.save_for_backward(*leaves)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        return None, *(leaf.new_zeros(leaf.shape) if needed else None for leaf, needed in wanted)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return torch.zeros_like(ctx.saved_tensors[0])
