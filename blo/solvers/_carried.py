"""The state that a solver with a fixed number of steps passes to the next call: momentum, or an optimiser's state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blo.errors import StructureError
from blo.solvers._base import Problem

__all__ = ["continued", "require_carry"]


def require_carry(carry: bool, fixed: bool) -> None:
    """Check that a solver with `carry=True` makes a fixed number of steps of given sizes.

    Raises:
        ValueError: if it stops at a tolerance or finds its own step size.
    """
    if carry and not fixed:
        raise ValueError("`carry=True` needs a fixed number of steps of given sizes: pass the step size, and tol=None.")


def continued(problem: Problem, fresh: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the tensors that an earlier call stored, or `fresh` if there was none.

    Raises:
        StructureError: if the two differ in number, shape, dtype or device.
    """
    # The state comes from the user, perhaps from a file: a wrong shape would broadcast without an error.
    left = problem.carried
    if left is None:
        return fresh
    kinds = [[(tuple(t.shape), t.dtype, t.device) for t in side] for side in (left, fresh)]
    if kinds[0] != kinds[1]:
        raise StructureError(
            "`state['solver']` must hold the tensors that the same solver stored in an earlier call for the same kind "
            f"of problem, {kinds[1]}, but holds {kinds[0]}. Start without `state` if the problem or the solver has "
            "changed."
        )
    return left
