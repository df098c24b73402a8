"""What a solver of a fixed number of steps hands on to the next call: its momentum, or the state of its optimiser."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blo.errors import StructureError
from blo.solvers._base import Problem

__all__ = ["continued", "require_carry"]


def require_carry(carry: bool, fixed: bool) -> None:
    """Refuse to carry on from a solve that stops where it likes, or finds its own step.

    Raises:
        ValueError: naming the argument.
    """
    if carry and not fixed:
        raise ValueError("`carry=True` continues a fixed number of steps of given sizes: give the step, and tol=None.")


def continued(problem: Problem, fresh: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return what an earlier call has left, or what is fresh where there was none.

    Raises:
        StructureError: if the two differ in number, shape, dtype or device.
    """
    left = problem.carried
    if left is None:
        return fresh
    kinds = [[(tuple(t.shape), t.dtype, t.device) for t in side] for side in (left, fresh)]
    if kinds[0] != kinds[1]:
        raise StructureError(
            f"`state['solver']` must be what the same solver left in an earlier call for a problem like this, "
            f"{kinds[1]}, but holds {kinds[0]}. Start without `state` when the problem or the solver has changed."
        )
    return left
