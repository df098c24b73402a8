"""How second derivatives are multiplied with vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from blo._bound import Bound
from blo._problem import FlatProblem
from blo.gradients._difference_point import DifferencePoint
from blo.gradients._finer import finer
from blo.gradients._forward_point import ForwardPoint
from blo.gradients._point import Point, ReversePoint
from blo.gradients._strained import strained

Products: TypeAlias = Literal["reverse", "forward", "finite-difference"]


def check(products: str) -> None:
    """Refuse an unknown way.

    Raises:
        ValueError: naming the ones there are.
    """
    if products not in get_args(Products):
        raise ValueError(f"`products` must be one of {', '.join(get_args(Products))}, but is {products!r}.")


def point(products: Products, problem: FlatProblem, bound: Bound, z: Tensor, leaves: Sequence[Tensor]) -> Point:
    """Return the second derivatives at `(leaves, z)`; `bound` is the problem there."""
    found = _point(products, problem, bound, z, leaves)
    tangent = strained(found.optimality.tangent, problem, bound, z)
    found.optimality = replace(found.optimality, tangent=tangent)
    return found


def _point(products: Products, problem: FlatProblem, bound: Bound, z: Tensor, leaves: Sequence[Tensor]) -> Point:
    if products == "reverse":
        return ReversePoint(bound, z, leaves)
    if products == "forward":
        return ForwardPoint(problem, bound, z, leaves)
    return DifferencePoint(bound, z, leaves, finer(problem, leaves, z))
