"""What other people's optimisers can be asked to do."""

from __future__ import annotations

from blo._term import Term
from blo.errors import StructureError
from blo.sets import Set

__all__ = ["require_set"]


def require_set(term: Term, solver: str) -> None:
    """Refuse a penalty: its proximal step belongs to a step size, which optimisers do not tell.

    Raises:
        StructureError: naming `solver`.
    """
    if not isinstance(term, Set):
        raise StructureError(
            f"`{solver}` projects on a constraint set after each step, but cannot take the penalty "
            f"{type(term).__name__}, whose proximal step needs a step size. Use FISTA() or ProjectedGradient()."
        )
