"""A strategy at the solution that the check has found, whatever the solver."""

from __future__ import annotations

from blo._check._slopes import Differences
from blo._hypergrad import Hypergradient, value_and_hypergrad
from blo._lower import LowerProblem
from blo._types import Tree
from blo.errors import StructureError
from blo.gradients import Strategy
from blo.solvers import External


def at_solution(around: Differences, lower: LowerProblem, gradient: Strategy) -> Hypergradient | None:
    """Return the hypergradient there; None for a strategy that asks more of a solver than the solution."""
    layout, calls = around.problem.layout, []

    def found(theta: Tree, z0: Tree) -> Tree:
        calls.append(1)
        return z0

    try:
        out = value_and_hypergrad(
            around.upper,
            lower,
            around.problem.structure.tree(around.leaves),
            layout.unravel(around.best.z),
            solver=External(found),
            gradient=gradient,
            on_failure="ignore",
        )
    except StructureError:  # steps are wanted, to be differentiated
        return None
    return out if len(calls) == 1 else None
