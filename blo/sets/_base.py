"""What every constraint set offers: the projection, the tangent space at a solution, and the motion of its boundary.

Vectors are flat, shape `(*lanes, n)`: the last axis holds coordinates, each leading index is a problem of its
own. Everything is a tensor function of its arguments without branches on their values, so that `torch.func`
transforms and a second backward pass go through it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from blo import tree
from blo._layout import Layout
from blo._types import Tree
from blo.errors import StructureError


class Counts(NamedTuple):
    """How many directions of each lane are free, held and undecided; integer tensors of shape `lanes`.

    Attributes:
        free: dimension of the tangent space (the rank of P).
        active: `n - free`, directions that the set holds.
        degenerate: active constraints whose multiplier cannot be told from zero (see `negligible`).
    """

    free: Tensor
    active: Tensor
    degenerate: Tensor


@dataclass(frozen=True, eq=False)
class Tangent:
    """The set near a solution, to second order.

    Attributes:
        projector: v -> P v, the orthogonal projector on the directions that stay feasible.
        curvature: diagonal of K, the curvature of the active boundary times its multiplier; broadcasts
            against `(*lanes, n)` and commutes with P.
        count: computes the counts; deferred because it is not free and most callers never ask.
    """

    projector: Callable[[Tensor], Tensor]
    curvature: Tensor | float
    count: Callable[[], Counts]

    def project(self, v: Tensor) -> Tensor:
        """Return P v, shape `(*lanes, n)`."""
        return self.projector(v)

    def counts(self) -> Counts:
        """Count free, active and degenerate directions of each lane."""
        return self.count()


class Set(ABC):
    """A closed set of lower variables. Parameters may be numbers, or tensors that require grad.

    Each subclass is registered as a tree whose leaves are its tensors.
    """

    def __init_subclass__(cls) -> None:
        """Let sets that move with theta be mapped over, by their tensors."""
        super().__init_subclass__()
        tree.register(cls, _is_parameter)

    @abstractmethod
    def project(self, z: Tensor) -> Tensor:
        """Return the nearest point of the set, differentiable in `z` and in the set's parameters.

        Args:
            z: shape `(*lanes, n)`.
        """

    @abstractmethod
    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        """Return the tangent space at a solution.

        Args:
            z: a minimiser over the set, shape `(*lanes, n)`.
            gradient: gradient of the lower objective there, same shape. The multipliers are read off it.
        """

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        """Return how far the active constraints carry `z` when the set's parameters move from `origin`'s to these.

        The value is zero where the parameters are equal; the derivative in these parameters is N of the hypergradient
        formula. Which constraints are active, and their normals, are those of `origin` at `z`. Sets without
        parameters do not move.

        Args:
            origin: the same set, its parameters taken as constants by a first differentiation.
            z: a minimiser over `origin`, shape `(*lanes, n)`.
        """
        return torch.zeros_like(z)

    def fit(self, layout: Layout) -> Set:
        """Return the same set with its parameters flattened like `layout` flattens z.

        Raises:
            StructureError: if a parameter does not fit z.
        """
        return self


def negligible(multiplier: Tensor, gradient: Tensor, tangential: Tensor) -> Tensor:
    """Tell which multipliers cannot be told from zero.

    The threshold of a lane is `sqrt(eps) * max|gradient| + max|P gradient|` with eps of the dtype (1.5e-8 and
    3.5e-4 relative in double and single precision): the second term is zero at an exact solution, so its size
    is the accuracy to which the multipliers are known.

    Args:
        multiplier: shape `(*lanes, k)`.
        gradient: gradient at the solution, shape `(*lanes, n)`.
        tangential: P gradient, shape `(*lanes, n)`.

    Returns:
        Booleans of shape `(*lanes, k)`.
    """
    relative = math.sqrt(torch.finfo(gradient.dtype).eps)
    size = gradient.abs().amax(-1, keepdim=True)
    noise = tangential.abs().amax(-1, keepdim=True)
    return multiplier.abs() <= relative * size + noise


def can_validate() -> bool:
    """Tell whether the values of tensors may be looked at: under `torch.func` transforms they may not."""
    return not torch._C._are_functorch_transforms_active()


def per_lane(value: Tensor | float) -> Tensor | float:
    """Make one value a lane, shape `lanes`, broadcast against `(*lanes, n)`."""
    return torch.unsqueeze(value, -1) if isinstance(value, Tensor) and value.ndim > 0 else value


def fit_per_lane(value: Tensor | float, layout: Layout, name: str) -> Tensor | float:
    """Return a number as it is, and a tensor with the axes of `layout.lanes`, of length one if it had none.

    Raises:
        StructureError: naming `name`, if it is neither a number nor one value a lane.
    """
    if not isinstance(value, Tensor):
        return value
    if tuple(value.shape) not in {(), layout.lanes}:
        allowed = "()" if not layout.lanes else f"() or {layout.lanes}"
        raise StructureError(
            f"`{name}` must be a number or a tensor of shape {allowed}, but has shape {tuple(value.shape)}. "
            "For one value a block of z, put the blocks in a `Product`."
        )
    return _like_z(value, layout, name, len(layout.lanes))


def fit_coordinates(value: Tree, layout: Layout, name: str) -> Tensor | float:
    """Return a number as it is, and a tensor or tree flattened like z, with the axes of `(*lanes, n)`.

    Raises:
        StructureError: naming `name`, if it does not fit.
    """
    flat = layout.ravel_parameter(value, name)
    return _like_z(flat, layout, name, len(layout.lanes) + 1) if isinstance(flat, Tensor) else flat


def _like_z(value: Tensor, layout: Layout, name: str, axes: int) -> Tensor:
    """Return a parameter with this number of axes, in z's precision, so that a projection keeps that of z."""
    if value.device != layout.device:
        raise StructureError(f"`{name}` must be on {layout.device} like `z0`, but is on {value.device}. Use `.to`.")
    # All axes are spelled out, so that the axis which `vmap` puts in front meets that of z.
    return value.to(layout.dtype).reshape((1,) * (axes - value.ndim) + value.shape)


def _is_parameter(value: object) -> bool:
    parts = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(part, Tensor | Set) for part in parts)
