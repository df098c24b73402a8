"""The hypergradient of a strategy at the tight solution of a check, without the solver."""

from __future__ import annotations

from blo._check._slopes import Differences
from blo._hypergrad import Hypergradient, value_and_hypergrad
from blo._lower import LowerProblem
from blo._types import Tree
from blo.errors import StructureError
from blo.gradients import Strategy
from blo.solvers import External


def at_solution(around: Differences, lower: LowerProblem, gradient: Strategy) -> Hypergradient | None:
    """Return the hypergradient at the tight solution; None for a strategy that needs more than one solution."""
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
    except StructureError:  # the strategy differentiates the steps of a solver
        return None
    # `found` returns z0 for every problem, also for a tilted one, so a second solve makes the result invalid.
    return out if len(calls) == 1 else None
