"""The derivative of the algorithm instead of the solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from blo import _autodiff
from blo._failures import Checks
from blo._problem import FlatProblem
from blo.gradients._base import Pulled, Solve, Strategy, Trace


@dataclass(frozen=True)
class Unrolled(Strategy):
    """Differentiates through every step of the lower solver, start excepted.

    It is the exact derivative of what the solver computed, converged or not. Memory grows with the number of steps.
    """

    def trace(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve) -> Trace:
        z = solve(replace(problem.bind(leaves), recorded=True), z0)
        inputs = [leaf for leaf in leaves if leaf.requires_grad]

        def pullback(v: Tensor, guess: Tensor | None) -> Pulled:
            found = iter(_autodiff.pullback([z], inputs, [v]))
            return Pulled([next(found) if leaf.requires_grad else None for leaf in leaves])

        return Trace(z.detach(), pullback)

    def attach(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve, checks: Checks
    ) -> Tensor:
        return solve(replace(problem.bind(leaves), recorded=True), z0)
