"""A function of the caller's between the gradient and the step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from blo._types import Tree
from blo._watch import versions
from blo.errors import StructureError
from blo.solvers._base import Problem

__all__ = ["require_transform", "transformed"]


def require_transform(transform: Callable[[Tree], Tree] | None) -> None:
    """Refuse what is not a function.

    Raises:
        StructureError: naming the argument.
    """
    if transform is not None and not callable(transform):
        raise StructureError(
            f"`transform` must be a function of a gradient, a tree like z, but is of type {type(transform).__name__}."
        )


def transformed(problem: Problem, transform: Callable[[Tree], Tree] | None, slope: Tensor) -> Tensor:
    """Return what the function makes of a gradient of shape `(*lanes, n)`; residuals are those of the gradient itself.

    Raises:
        StructureError: if it does not return a tree like z, or writes to the gradient.
    """
    if transform is None:
        return slope
    before = versions([slope])
    found = problem.mapped(transform, "transform(gradient)", slope)
    if versions([slope]) != before:
        raise StructureError(
            "`transform` must not write to the gradient, but does, as torch.nn.utils.clip_grad_norm_ would: return a "
            "new tree."
        )
    return found
