"""The steps of a lower solve, made again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from blo import tree
from blo._bound import Bound
from blo.errors import StructureError
from blo.solvers import Iterative, Solver, advance, begin
from blo.solvers._running import Running


@dataclass(frozen=True)
class Replay:
    """The steps of an iterative solver, one by one.

    Attributes:
        solver: the solver.
    """

    solver: Iterative

    @classmethod
    def of(cls, solver: Solver) -> Replay:
        """Return the steps of a solver.

        Raises:
            StructureError: if it has none that can be repeated.
        """
        if not isinstance(solver, Iterative):
            raise StructureError(
                f"`Unrolled` with `last` or `checkpoint` repeats steps of the solver, but {type(solver).__name__} "
                "has none that can be repeated. Use ProjectedGradient, or plain Unrolled()."
            )
        return cls(solver)

    def begin(self, problem: Bound, z0: Tensor) -> Running:
        """Return the state that the steps of a solve begin from."""
        return begin(self.solver, problem.follow(), z0)

    def restart(self, problem: Bound, state: Running) -> Running:
        """Return a state whose point is a constant and whose slope there depends on theta."""
        held: Running = tree.map(lambda tensor: tensor.detach(), state)
        return held._replace(state=held.state.anew(problem.gradient))

    def advance(self, problem: Bound, state: Running, first: int, steps: int) -> Running:
        """Return the state after the `steps` steps from number `first` on, from the state before them."""
        return advance(self.solver, problem.follow(), state, first, steps)

    def answer(self, state: Running) -> Tensor:
        """Return the solution that a last state stands for."""
        z: Tensor = state.state.trial if self.solver.tol is None else state.z
        return z
