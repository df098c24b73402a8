"""A view of a model with a forward pass compiled by `torch.compile`; it shares the model's layers and tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from adv_train.errors import UserError


def compiled(model: nn.Module) -> nn.Module:
    """Return a view of a model with a compiled forward pass, for methods that take one derivative of each pass.

    The view shares the modules and tensors of the model, so `torch.func.functional_call` and train and eval mode work
    as on the model, which does not change. The batch is a dynamic dimension, so the last, smaller batch of an epoch
    needs no compilation of its own. The modes of BatchNorm, and which tensors require a gradient, are compiled
    separately, each when it first occurs.

    Raises:
        UserError: In a second backward pass through one forward pass. The backward passes that torch 2.15 compiles
            overwrite the tensors that they have saved, so a second one returns wrong numbers without an error.
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
                "The method differentiates one forward pass twice, which compiled code does not support: use "
                "--accelerate off."
            )

    return hook
