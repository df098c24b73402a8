"""What other people's optimisers can be asked to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from blo._term import Term
from blo.errors import StructureError
from blo.sets import Set

__all__ = ["RootsAtZero", "require_set"]

_ROOTS = (torch.sqrt, Tensor.sqrt)
_ROOTS_IN_PLACE = (torch.sqrt_, Tensor.sqrt_)
_POWERS = (torch.pow, Tensor.pow, Tensor.__pow__)


class RootsAtZero(TorchFunctionMode):
    """Within it, a square root has the derivative 0 at 0, where torch has infinity and so makes NaN of zero times it.

    Adam and its relatives divide by the root of an average of squared gradients, which is the length of a vector: it
    is 0 where all these gradients are 0, and there the numerator of the step is 0 as well. So the derivative of the
    step is that of its numerator, whatever finite number stands for the derivative of the root.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _ROOTS_IN_PLACE:
            return args[0].copy_(_root(args[0]))
        plain_power = func in _POWERS and not kwargs and isinstance(args[0], Tensor)
        if (func in _ROOTS and not kwargs) or (plain_power and not isinstance(args[1], Tensor) and args[1] == 0.5):
            return _root(args[0])
        return func(*args, **(kwargs or {}))


def _root(x: Tensor) -> Tensor:
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def require_set(term: Term, solver: str) -> None:
    """Refuse a penalty: its proximal step belongs to a step size, which optimisers do not tell.

    Raises:
        StructureError: naming `solver`.
    """
    if not isinstance(term, Set):
        raise StructureError(
            f"`{solver}` projects on a constraint set after each step, but cannot take the penalty "
            f"{type(term).__name__}, whose proximal step needs a step size. Use FISTA() or ProjectedGradient()."
        )
