"""Requirements on optimisers of other libraries, and a derivative for their square roots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from blo._autodiff import plain
from blo._term import Term
from blo._transforms import outside_transforms
from blo.errors import StructureError
from blo.sets import Set

__all__ = ["CONVERTED", "Differentiably", "require_derivative", "require_set"]

_ROOTS = (torch.sqrt, Tensor.sqrt)
_ROOTS_IN_PLACE = (torch.sqrt_, Tensor.sqrt_)
_POWERS = (torch.pow, Tensor.pow, Tensor.__pow__)
#: Keyword arguments that torch converts to numbers, without a derivative.
_NUMBERS = ("alpha", "value")
#: Operations whose result does not carry the graph of their tensor.
_CONSTANTS = (Tensor.__float__, Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.detach, Tensor.detach_)


#: The error for a setting that has no derivative.
CONVERTED = (
    "`optimizer` passes a setting that is a function of theta to torch as a number, which has no derivative. torchopt "
    "does so with `weight_decay`. Make this setting a number, or add the term to the lower objective."
)


class Differentiably(TorchFunctionMode):
    """A context in which the update of an optimiser has a finite derivative where its gradients are exactly zero.

    Adam and similar optimisers divide by the root of an average of squared gradients. If all these gradients are 0, the
    root is 0, and so is the numerator of the step. The derivative of the step is then that of its numerator, for every
    finite derivative of the root. Torch's derivative of the root is infinite, and 0 times infinity is NaN; in this
    context it is 0. Adagrad replaces the step by the constant 0 where the sum of squares is not positive; this context
    keeps the step itself, which is also 0 but has a derivative.

    Attributes:
        constants: whether an operation has dropped the graph of a tensor, so that the derivative of the update may be
            wrong.

    Raises:
        StructureError: if the optimiser passes a setting that is a tensor where torch takes a number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.constants = False
        self._recorded = torch.is_grad_enabled()
        self._positive: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # An update under `torch.no_grad()` shows as a changed gradient mode.
        self.constants |= func in _CONSTANTS or torch.is_grad_enabled() is not self._recorded
        given = next((name for name in _NUMBERS if kwargs and isinstance(kwargs.get(name), Tensor)), None)
        if given is not None:
            raise StructureError(CONVERTED)
        if func in _ROOTS_IN_PLACE:
            return args[0].copy_(_root(args[0]))
        plain_power = func in _POWERS and not kwargs and isinstance(args[0], Tensor)
        if (func in _ROOTS and not kwargs) or (plain_power and not isinstance(args[1], Tensor) and args[1] == 0.5):
            return _root(args[0])
        if func is torch.where and any(args[0] is condition for condition in self._positive) and len(args) == 3:
            return func(args[0] | (args[1] == 0), *args[1:]) if _is_zero(args[2]) else func(*args)
        found = func(*args, **(kwargs or {}))
        if func in (torch.gt, Tensor.gt) and _is_zero(args[1]):
            self._positive.append(found)
        return found


def _root(x: Tensor) -> Tensor:
    # The inner `where` keeps the derivative of `sqrt` finite: the outer one alone would multiply infinity by zero.
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def require_set(term: Term, solver: str) -> None:
    """Check that the term is a set: the proximal step of a penalty needs a step size, which optimisers do not expose.

    Raises:
        StructureError: if it is a penalty; the message names `solver`.
    """
    if not isinstance(term, Set):
        raise StructureError(
            f"`{solver}` projects onto a constraint set after each step, but cannot take the penalty "
            f"{type(term).__name__}, whose proximal step needs a step size. Use FISTA() or ProjectedGradient()."
        )


def require_derivative(update: Callable[[Tensor], Tensor], slope: Tensor) -> None:
    """Check torch's derivative of an update along the gradient against a central difference.

    Raises:
        StructureError: if they differ; the message gives both.
    """
    point = plain(slope).detach()
    # Along the gradient no coordinate changes its sign, so the difference avoids the kinks of updates, which are at 0.
    # The cube root of eps balances rounding and truncation of a central difference.
    step = float(torch.finfo(point.dtype).eps) ** (1 / 3)
    with outside_transforms(), torch.enable_grad():
        live = point.clone().requires_grad_()
        there = (update(live) * point).sum()
        (found,) = torch.autograd.grad(there, live, allow_unused=True) if there.requires_grad else (None,)
        seen = ((update((1 + step) * point) - update((1 - step) * point)) * point).sum() / (2 * step)
    derived = point.new_zeros(()) if found is None else (found * point).sum()
    # A lost factor is an error of order one, so 1 % is enough; the last term allows for rounding where both are small.
    if bool((derived - seen).abs() > 1e-2 * torch.maximum(derived.abs(), seen.abs()) + 1e-3 * there.abs()):
        raise StructureError(
            "`optimizer` must be differentiable to be unrolled, but its update treats something that depends on the "
            "gradient as a constant (by float(), .item(), .detach() or torch.no_grad()), as "
            "torchopt.clip.clip_grad_norm does with the norm: the derivative along the gradient is "
            f"{float(seen):.3g}, but torch's is {float(derived):.3g}. Compute it by tensor operations in a "
            "transformation of your own, leave it out, or use Implicit()."
        )
