"""The differentiable lower solve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from blo._autodiff import transforms_active
from blo._failures import Checks
from blo._hoist import hoist
from blo._problem import Bound, FlatProblem, LowerProblem
from blo._types import OnFailure, Tree
from blo.gradients import Implicit, Strategy, Unrolled
from blo.solvers import ProjectedGradient, Solution, Solver


@dataclass
class Solving:
    """A lower solver as the callable that strategies receive; keeps what the last solve reported.

    Args:
        solver: the solver.
        checks: what to do with its findings.
        hoisted: theta brings captured tensors along, which are none of the solver's business.
    """

    solver: Solver
    checks: Checks
    hoisted: bool = False
    last: Solution | None = field(default=None, init=False)

    def __call__(self, problem: Bound, z0: Tensor) -> Tensor:
        if self.hoisted:
            problem = replace(problem, theta=problem.theta[0])
        with torch.set_grad_enabled(problem.recorded):
            self.last = self.solver.solve(problem, z0)
        if not transforms_active():
            self.checks.lower(self.last)
        return self.last.z if problem.recorded else self.last.z.detach()


def argmin(
    lower: LowerProblem,
    theta: Tree,
    z0: Tree,
    *,
    solver: Solver | None = None,
    gradient: Strategy | None = None,
    on_failure: OnFailure | None = None,
) -> Tree:
    """Return a solution of the lower problem as a differentiable function of theta.

    Works under `.backward()`, `torch.func.grad`, `torch.func.jacrev` and `torch.func.vmap`, and inside the objective
    of another lower problem. Derivatives of any order are those of the solution, not of the iteration (except for
    `Unrolled`, where it is the reverse). Outside transforms, tensors captured by the objective are constants;
    `torch.func` transforms reach captured tensors as well as theta.

    Args:
        lower: the lower problem.
        theta: upper variable, a tree of tensors.
        z0: start of the solver, a tree of floating point tensors; a constant.
        solver: a lower solver; `ProjectedGradient()` by default.
        gradient: a strategy; `Implicit()` by default, which solves the adjoint system by conjugate gradients.
        on_failure: `"raise"`, `"warn"` or `"ignore"`; by default non-finite values raise and all else warns.

    Returns:
        A tree like `z0`.

    Raises:
        StructureError: if the objective or the set do not fit theta and z0.
        NonFiniteError: if the solution or the adjoint is not finite.
        ConvergenceError: if a solve stopped early and `on_failure="raise"`.
    """
    solver = ProjectedGradient() if solver is None else solver
    gradient = Implicit() if gradient is None else gradient
    checks = Checks(on_failure, measured=solver.tol is not None)
    if transforms_active() and not isinstance(gradient, Unrolled):
        hoisted, theta = hoist(lower, theta, z0)
    else:
        hoisted = lower
    problem, start, leaves = FlatProblem.of(hoisted, theta, z0)
    solve = Solving(solver, checks, hoisted=hoisted is not lower)
    return problem.layout.unravel(gradient.attach(problem, leaves, start, solve, checks))
