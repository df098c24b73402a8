"""The lower and upper bound of each coordinate, for solvers that need a set of such bounds."""

from __future__ import annotations

from torch import Tensor

from blo._term import Term, expanded
from blo.errors import StructureError
from blo.sets import Free

__all__ = ["bounds"]


def bounds(term: Term, z: Tensor, solver: str) -> tuple[Tensor, Tensor] | None:
    """Return the lower and upper bounds, in the shape of z; None if the problem has no constraint.

    Raises:
        StructureError: for any other set and for penalties; the message names the solver.
    """
    if isinstance(term, Free):
        return None
    found = term.bounds(z)
    if found is None:
        raise StructureError(
            f"`{solver}` needs a set that bounds each coordinate by itself: `Free`, `Box`, `NonNegative`, a `Product` "
            f"of these, or a set of your own with `bounds`, but got {type(term).__name__}. Use ProjectedGradient() or "
            "FISTA()."
        )
    low, high = found
    return expanded(low, z), expanded(high, z)
