"""What every constraint set offers."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from blo._layout import Layout
from blo._term import Counts, Tangent, Term
from blo.sets._rows import Rows

__all__ = ["Counts", "Set", "Tangent"]


class Set(Term):
    """A closed set of lower variables: as a term, zero on the set and infinite elsewhere."""

    @abstractmethod
    def project(self, z: Tensor) -> Tensor:
        """Return the nearest point of the set, differentiable in `z` and in the set's parameters.

        Args:
            z: shape `(*lanes, n)`.
        """

    def rows(self, layout: Layout) -> Rows | None:
        """Return the equations and inequalities that describe a fitted set, None where it has no such description.

        `Intersection` makes one set of all that have.
        """
        return None

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        return self.project(z)
