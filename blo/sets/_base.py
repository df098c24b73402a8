"""What every constraint set offers."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from blo._term import Counts, Tangent, Term

__all__ = ["Counts", "Set", "Tangent"]


class Set(Term):
    """A closed set of lower variables: as a term, zero on the set and infinite elsewhere."""

    @abstractmethod
    def project(self, z: Tensor) -> Tensor:
        """Return the nearest point of the set, differentiable in `z` and in the set's parameters.

        Args:
            z: shape `(*lanes, n)`.
        """

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        return self.project(z)
