"""The objective on both sides of a point, for the cross term by central differences."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from blo._objective import LinearSlice
from blo._problem_at_theta import ProblemAtTheta

__all__ = ["slope_between", "two_values", "value_beside"]


def two_values(problem: ProblemAtTheta, z: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return two values, shape `lanes`, whose gradients in theta differ by that of `<gradient(z), 2 shift>`.

    The error is a third derivative times `shift` cubed. The gradient of a linearised objective in z depends on theta
    through the gradient of the original objective at the anchor. So the original objective is evaluated on both sides
    of the anchor, which saves a second backward pass.
    """
    return value_beside(problem, z, shift), value_beside(problem, z, -shift)


def value_beside(problem: ProblemAtTheta, z: Tensor, shift: Tensor) -> Tensor:
    """Return the first of `two_values`."""
    model = problem.slice
    if isinstance(model, LinearSlice):
        problem, z = replace(problem, slice=model.source), model.anchor
    return problem.value(z + shift)


def slope_between(problem: ProblemAtTheta, slope: Tensor) -> Tensor:
    """Return the gradient midway between the two points of `two_values`, given that of the objective at z."""
    return problem.slice.slope.detach() if isinstance(problem.slice, LinearSlice) else slope
