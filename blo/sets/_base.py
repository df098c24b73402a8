"""The interface of constraint sets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import TypeVar, cast

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import settled
from blo._layout import Layout
from blo._term import Counts, Tangent, Term
from blo.sets._rows import Rows

__all__ = ["Counts", "Set", "Tangent"]

_S = TypeVar("_S", bound="Set")


class Set(Term):
    """A closed set of lower variables: as a term, zero on the set and infinite elsewhere.

    A constraint is active at a solution z if the distance of z from its boundary is at most `slack` and at most the
    multiplier: the size, in the unit of the gradient, with which the objective presses z against the boundary. `slack`
    is absolute, in z's unit; a negative one raises `ValueError` when the problem is solved.
    """

    @abstractmethod
    def project(self, z: Tensor) -> Tensor:
        """Return the nearest point of the set, differentiable in `z` and in the set's parameters.

        Args:
            z: shape `(*lanes, n)`.
        """

    def rows(self, layout: Layout) -> Rows | None:
        """Return the linear equations and inequalities that describe a fitted set, None if it is not such a set.

        `Intersection` combines all sets that have them into one.
        """
        return None

    def apart(self, layout: Layout) -> Set:
        """Return the set as `fit` does, but an `Intersection` with all the parts that it was given.

        Each multiplier then belongs to a constraint of the user's.
        """
        return cast(Set, self.fit(layout))

    def blocked(self, z: Tensor, gradient: Tensor) -> Tensor | None:
        found = self.bounds(z)
        if found is None:
            return None
        low, high = found
        stopped: Tensor = ((z <= low) & (gradient > 0)) | ((z >= high) & (gradient < 0))
        return stopped

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        return self.project(settled(z))


def in_single(project: Callable[[_S, Tensor], Tensor]) -> Callable[[_S, Tensor], Tensor]:
    """Decorate a `project` that adds up all coordinates: a z in half precision is projected in single precision.

    In half precision the rounding of a sum of thousands of terms moves the point far off the set.
    """

    @wraps(project)
    def projected(self: _S, z: Tensor) -> Tensor:
        dtype = torch.promote_types(z.dtype, torch.float32)
        if dtype is z.dtype:
            return project(self, z)
        wide = tree.map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, self)
        return project(wide, z.to(dtype)).to(z.dtype)

    return projected
