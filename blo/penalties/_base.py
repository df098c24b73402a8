"""What every penalty offers."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from blo._term import Term


class Penalty(Term):
    """A convex, non-smooth function added to the lower objective."""

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """Return the penalty, shape `lanes`, of z of shape `(*lanes, n)`."""
