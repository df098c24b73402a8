"""A model whose forward pass `torch.compile` makes; its weights, statistics and layers are those of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from adv_train.errors import UserError


def compiled(model: nn.Module) -> nn.Module:
    """Return a view of a model with a compiled forward pass, for methods that take one derivative of each pass.

    The modules and tensors are shared, so `torch.func.functional_call` and modes work as on the model, which itself
    stays as it is. The batch is a dynamic dimension: the last, smaller batch of an epoch needs no compilation of its
    own. The modes of BatchNorm, and what needs a gradient, are; each is compiled when it is met.

    Raises:
        UserError: In a second backward pass through one forward pass. The backward passes that torch 2.15 compiles
            overwrite what they have saved, and then return wrong numbers without a word.
    """
    view = copy.copy(model)
    forward = cast(Callable[[Tensor], Tensor], torch.compile(view.forward))

    def guarded(x: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        out = forward(x)
        if out.requires_grad:
            out.register_hook(_once())
        return out

    view.forward = guarded
    return view


def seconds_of_compiling() -> float:
    """Return the seconds that this process has spent on compilation so far."""
    from torch._dynamo.utils import calculate_time_spent  # the compiler takes seconds to import

    return calculate_time_spent()["total_wall_time"]


def _once() -> Callable[[Tensor], None]:
    passes = 0

    def hook(_: Tensor) -> None:
        nonlocal passes
        passes += 1
        if passes > 1:
            raise UserError(
                "The method differentiates one forward pass twice, which compiled code cannot: use --accelerate off."
            )

    return hook
