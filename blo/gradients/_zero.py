"""No implicit gradient: alternating or min-max optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import transforms_active
from blo._parametric_problem import ParametricProblem
from blo._problem_at_theta import ProblemAtTheta
from blo.gradients._base import Pulled, Solve, Strategy
from blo.gradients._function import FunctionRule, Solved


@dataclass(frozen=True)
class Zero(Strategy):
    """Treats the lower solution as a constant.

    This is exact if the upper objective is minus the lower one, penalty included, neither the set nor the penalty
    depends on theta, and the unique global minimiser has been found (Danskin). Otherwise it is an approximation, which
    Fast-AT, PGD-AT and first-order MAML use.
    """

    expects_theta = False
    allows_random = True
    reads_theta_late = False

    def rule(self, problem: ParametricProblem, solve: Solve) -> FunctionRule:
        return _ZeroRule(solve)


@dataclass(frozen=True)
class _ZeroRule(FunctionRule):
    solve: Solve
    uses_start = False

    def forward(self, problem: ProblemAtTheta, z0: Tensor) -> Tensor:
        return self.solve(problem, z0)

    def attach(self, problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        constants = [leaf.detach() for leaf in leaves]
        if transforms_active():
            return Solved.by(self, problem, z0, constants).detach()
        with torch.no_grad():  # No derivative is ever taken: spare the overhead of an autograd function.
            return self.forward(problem.bind(constants), z0).detach()

    def pull(self, problem: ProblemAtTheta, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        return Pulled([None] * len(problem.leaves))

    def pull_again(
        self, problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor, z: Tensor, v: Tensor
    ) -> Sequence[Tensor | None]:
        return [None] * len(leaves)
