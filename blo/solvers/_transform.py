"""A user's function of the gradient that is applied before each step, for example clipping."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from blo._torch import versions
from blo._types import Tree
from blo.errors import StructureError
from blo.solvers._base import Problem

__all__ = ["require_transform", "transformed"]


def require_transform(transform: Callable[[Tree], Tree] | None) -> None:
    """Check that the setting `transform` is a function.

    Raises:
        StructureError: if it is not.
    """
    if transform is not None and not callable(transform):
        raise StructureError(
            f"`transform` must be a function of a gradient, a tree like z, but is of type {type(transform).__name__}."
        )


def transformed(problem: Problem, transform: Callable[[Tree], Tree] | None, slope: Tensor) -> Tensor:
    """Return the transformed gradient, shape `(*lanes, n)`; residuals are those of the gradient itself.

    Raises:
        StructureError: if the function does not return a tree like z, or writes to the gradient.
    """
    if transform is None:
        return slope
    # A write in place would change the gradient from which the residual is computed, and would break its graph.
    before = versions([slope])
    found = problem.mapped(transform, "transform(gradient)", slope)
    if versions([slope]) != before:
        raise StructureError(
            "`transform` must not write to the gradient, but it does, as torch.nn.utils.clip_grad_norm_ would. Return "
            "a new tree instead."
        )
    return found
