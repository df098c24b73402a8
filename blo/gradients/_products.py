"""How second derivatives are multiplied with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from blo._problem_at_theta import ProblemAtTheta
from blo.gradients._difference_point import DifferencePoint
from blo.gradients._forward_point import ForwardPoint
from blo.gradients._point import Point, ReversePoint
from blo.gradients._strained import strained

Products: TypeAlias = Literal["reverse", "forward", "finite-difference"]
_POINTS: dict[str, Callable[[ProblemAtTheta, Tensor], Point]] = {
    "reverse": ReversePoint,
    "forward": ForwardPoint,
    "finite-difference": DifferencePoint,
}


def check(products: str) -> None:
    """Check that `products` has one of its possible values.

    Raises:
        ValueError: if it has not; the message lists them.
    """
    if products not in get_args(Products):
        raise ValueError(f"`products` must be one of {', '.join(get_args(Products))}, but is {products!r}.")


def point(products: Products, problem: ProblemAtTheta, z: Tensor) -> Point:
    """Return the second derivatives of a problem at `(theta, z)`."""
    found = _POINTS[products](problem, z)
    tangent = found.optimality.tangent
    # Dependent constraints matter only where theta can move them apart.
    if tangent.strain is not None and problem.moving:
        tangent = strained(tangent, tangent.strain, problem, z)
        found.optimality = replace(found.optimality, tangent=tangent)
    return found
