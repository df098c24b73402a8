"""Losses computed by their formulas, where torch has the second derivative only in reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Formulas(TorchFunctionMode):
    """Computes some of torch's functions by others.

    Args:
        table: the other functions by those of torch.
    """

    def __init__(self, table: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self._table = table

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._table.get(function, function)(*args, **(kwargs or {}))


def _mse(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean", **rest: Any
) -> Tensor:
    if rest.get("weight") is not None:  # torch computes this case by a formula itself
        return F.mse_loss(input, target, size_average, reduce, reduction, **rest)
    return _reduced((input - target).square(), size_average, reduce, reduction)


def _huber(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, **rest: Any) -> Tensor:
    if rest.get("weight") is not None:
        return F.huber_loss(input, target, reduction, delta, **rest)
    # Huber's loss is delta times the smooth L1 loss with beta = delta.
    return delta * F.smooth_l1_loss(input, target, reduction=reduction, beta=delta)


def _soft_margin(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean"
) -> Tensor:
    # log(1 + exp(-y x)) = -logsigmoid(y x), in which the exponential cannot overflow.
    return _reduced(-F.logsigmoid(target * input), size_average, reduce, reduction)


def _reduced(parts: Tensor, size_average: Any, reduce: Any, reduction: str) -> Tensor:
    if size_average is not None or reduce is not None:  # torch's older arguments
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    return parts if reduction == "none" else parts.sum() if reduction == "sum" else parts.mean()


#: The losses as operations that forward mode differentiates over reverse mode.
LOSSES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.mse_loss: _mse,
    F.huber_loss: _huber,
    F.soft_margin_loss: _soft_margin,
}
