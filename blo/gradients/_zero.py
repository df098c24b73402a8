"""No implicit gradient: alternating or min-max optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from blo._failures import Checks
from blo._problem import FlatProblem
from blo.gradients._base import Pulled, Solve, Strategy, Trace
from blo.gradients._function import Solution


@dataclass(frozen=True)
class Zero(Strategy):
    """Treats the lower solution as a constant.

    Exact when the lower objective is minus the upper one and is solved exactly (Danskin); Fast-AT, PGD-AT and
    first-order MAML use it as an approximation elsewhere.
    """

    expects_theta = False

    def trace(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve) -> Trace:
        z = solve(problem.bind([leaf.detach() for leaf in leaves]), z0)
        return Trace(z, lambda v, guess: Pulled([None] * len(leaves)))

    def attach(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve, checks: Checks
    ) -> Tensor:
        return Solution.solve(problem, [leaf.detach() for leaf in leaves], z0, solve).detach()
