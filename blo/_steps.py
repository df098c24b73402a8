"""Repeats single steps of a lower solver."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from blo import tree
from blo._problem_at_theta import ProblemAtTheta
from blo.errors import StructureError
from blo.solvers import Iterative, Solver, advance, begin
from blo.solvers._confirm import Running


@dataclass(frozen=True)
class SolverSteps:
    """Repeats single steps of an iterative solver.

    Attributes:
        solver: the solver.
    """

    solver: Iterative

    @classmethod
    def of(cls, solver: Solver) -> SolverSteps:
        """Return the object that repeats the steps of `solver`.

        Raises:
            StructureError: if the solver is not iterative.
        """
        if not isinstance(solver, Iterative):
            raise StructureError(
                f"`Unrolled` with `last` or `checkpoint` repeats steps of the solver, but {type(solver).__name__} "
                "has none that can be repeated. Use ProjectedGradient, or plain Unrolled()."
            )
        return cls(solver)

    def begin(self, problem: ProblemAtTheta, z0: Tensor) -> Running:
        """Return the state before the first step."""
        return begin(self.solver, problem.follow(), z0)

    def restart(self, problem: ProblemAtTheta, state: Running) -> Running:
        """Return the state with its point held constant and the slope there as a function of theta."""
        held: Running = tree.map(lambda tensor: tensor.detach(), state)
        return held._replace(state=held.state.anew(problem.at_step(getattr(held.state, "age", ())).gradient))

    def advance(self, problem: ProblemAtTheta, state: Running, first: int, steps: int) -> Running:
        """Return the state after `steps` more steps, the first of which has the number `first`."""
        return advance(self.solver, problem.follow(), state, first, steps)

    def answer(self, state: Running) -> Tensor:
        """Return the solution that belongs to the last state."""
        # Without a tolerance the last trial is the result, and its gradient is never computed. With one, the result is
        # the point whose residual was measured.
        z: Tensor = state.state.trial if self.solver.tol is None else state.z
        return z
