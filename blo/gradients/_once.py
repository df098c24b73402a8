"""Recorded steps whose second derivative is wrong in torch: asking for it raises an error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from blo.errors import DerivativeError


def once(z: Tensor) -> Tensor:
    """Return z with a graph that can be differentiated once.

    Raises:
        DerivativeError: when a derivative of z is differentiated.
    """
    found: Tensor = _Once.apply(z)
    return found


class _Once(Function):
    """The identity, whose derivatives depend on `_Nothing`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        return v - _Nothing.apply(*ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Any:
        return tangent - _Nothing.apply(*ctx.saved_tensors)


class _Nothing(Function):
    """Zeros as a function of z without a derivative.

    Only derivatives in what z depends on reach it, not those in other variables of the upper objective.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.zeros_like(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> Any:
        raise _error()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Any:
        raise _error()


def _error() -> DerivativeError:
    return DerivativeError(
        "a derivative of a hypergradient was requested, which needs third derivatives of the lower objective, but "
        "those of a layer norm or batch norm in it are wrong in torch, and steps that `Unrolled` has recorded cannot "
        "be evaluated again. Use torch.func for both derivatives, as in jacrev(jacrev(f)), which `Unrolled` sees when "
        "it records; or Implicit(); or normalise by mean and var."
    )
