"""Normalisations by formulas, for evaluations that are differentiated three times.

The third derivative of torch's layer norm treats the statistics of the input as constants. That of its batch norm
raises an error outside `torch.func`, and is wrong inside. Values, first and second derivatives are correct and faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from blo._flag import Flag

#: On where objectives are evaluated such that their third derivatives are correct.
third_derivatives = Flag("third derivatives are needed")


def _normalized(x: Tensor, dims: Iterable[int], eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return `(x - mean) / sqrt(variance + eps) * weight + bias`, in single precision or better.

    Args:
        x: any shape.
        dims: the axes of mean and variance.
        eps: added to the variance.
        weight: broadcasts to x, as does `bias`.
    """
    dims = tuple(dims)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dims, keepdim=True)
    found = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    found = _normalized(input, range(-len(normalized_shape), 0), eps, weight, bias)
    # On accelerators autocast computes this layer in single precision.
    kind = input.device.type
    return found if kind != "cpu" and torch.is_autocast_enabled(kind) else found.to(input.dtype)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:  # the statistics are constants, and torch is correct
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    # Torch updates the running statistics, and rejects inputs without a variance.
    F.batch_norm(input.detach(), running_mean, running_var, None, None, True, momentum, eps)
    return _by_channel(input, (0, *range(2, input.ndim)), eps, weight, bias)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    F.instance_norm(input.detach(), running_mean, running_var, None, None, True, momentum, eps)
    return _by_channel(input, range(2, input.ndim), eps, weight, bias)


def _by_channel(x: Tensor, dims: Iterable[int], eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return x normalised, with one entry of weight and bias for each index of the second axis."""
    columns = [p if p is None else p.reshape(-1, *(1,) * (x.ndim - 2)) for p in (weight, bias)]
    return _normalized(x, dims, eps, *columns).to(x.dtype)


def _of_torch(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a formula with the arguments in the order of `torch.batch_norm` instead of that of `F.batch_norm`."""

    def called(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        return formula(input, running_mean, running_var, weight, bias, training, momentum, eps)

    return called


NORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _of_torch(_batch_norm),
    F.instance_norm: _instance_norm,
    torch.instance_norm: _of_torch(_instance_norm),
}
