"""The differentiable lower solve."""

from __future__ import annotations

import torch
from torch import Tensor

from blo import tree
from blo._autocast import without
from blo._autodiff import transforms_active
from blo._entrance import entrance, outside_compile
from blo._failures import Checks
from blo._hoist import hoist
from blo._lower import LowerProblem
from blo._parametric_problem import ParametricProblem
from blo._parts import equipped, require_parts
from blo._solving import Solving
from blo._types import OnFailure, Tree
from blo.errors import StructureError
from blo.gradients import Implicit, Strategy
from blo.solvers import Solver


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

    Torch differentiates it in reverse mode: by `.backward()`, `torch.func.grad`, `vjp` and `jacrev`, under `vmap`, and
    inside the objective of another lower problem. Derivatives may be nested to any order, as in
    `jacrev(jacrev(f))`, where the strategy allows it; those of `Implicit` are derivatives of the solution if its
    linear solver converges, those of `Unrolled` of the iteration. `ValueFunction`, `Unrolled(checkpoint=True)` and
    `Unrolled(mode="forward")` can be differentiated once.

    The forward mode of torch (`jvp`, `jacfwd`, and `hessian`, which uses it) works with `Unrolled()` and
    `Unrolled(last=k)`, whose steps torch records; for other strategies use `jacrev(jacrev(f))` in place of `hessian`.

    Under `.backward()`, tensors that the objective captures are constants, unless `Unrolled` records its use of them;
    `torch.func` transforms reach captured tensors as well as theta.

    Args:
        lower: the lower problem.
        theta: upper variable, a tree of tensors, real or complex.
        z0: start of the solver, a tree of floating point tensors; a constant (but see `Unrolled.start`).
        solver: a lower solver. The default is `LBFGS` without a constraint or with bounds, `FISTA` for other sets and
            for penalties, and `FixedPoint` for equilibria. It stops at a residual of 1e-11 (1e-5 in single precision),
            or at a smaller one if the objective's curvature is below 1. For `Unrolled` the default is at most 2,000
            steps of `FISTA`, for every objective.
        gradient: a strategy; `Implicit()` by default, which chooses a linear solver for the adjoint system.
        on_failure: `"raise"`, `"warn"` or `"ignore"`; by default, non-finite values raise and other problems warn.

    Returns:
        A tree like `z0`.

    Raises:
        StructureError: if an argument has the wrong type, or the objective or the set do not fit theta and z0.
        InfeasibleError: if the constraint set is empty at theta.
        NonFiniteError: if the solution or the adjoint is not finite.
        DerivativeError: if a second derivative is needed and torch has none for an operation of the objective.
        ConvergenceError: if `on_failure="raise"`, instead of the warnings below; a theta that does not require grad
            still gives a warning.
        ValueError: for any other `on_failure`, or if `slack` or a weight of the set or penalty is negative.

    Warns:
        ConvergenceWarning: if a solve stopped early, or the curvature is not positive.
        FixedStepsWarning: if a fixed number of steps did not reach the solution, also with `on_failure="raise"`.
        DegenerateWarning: if an active constraint has multiplier zero.
        ConstantWarning: if theta does not enter the lower problem, or has no leaf that requires grad where gradients
            are enabled.

    The backward pass raises the errors and gives the warnings that concern the derivative.
    """
    # Inside a transform the compiler cannot break its graph, so steps that it can trace are traced.
    if torch.compiler.is_compiling() and gradient is not None and gradient.recorded and transforms_active():
        solved = _argmin  # a fixed number of steps is traced into the caller's graph
    else:
        solved = outside_compile(_argmin)
    return solved(lower, theta, z0, solver, gradient, on_failure)


@entrance()
def _argmin(
    lower: LowerProblem,
    theta: Tree,
    z0: Tree,
    solver: Solver | None,
    gradient: Strategy | None,
    on_failure: OnFailure | None,
) -> Tree:
    require_parts(lower, solver, gradient)
    if solver is not None and solver.carry:
        raise StructureError(
            "`argmin` returns no `state` in which a solver with carry=True could store its momentum. Leave `carry` "
            "out, or call value_and_hypergrad(..., state=...)."
        )
    gradient = Implicit() if gradient is None else gradient
    # Recorded steps are ordinary operations, through which transforms see captured tensors. An `autograd.Function`
    # shows them its arguments only.
    if transforms_active() and not gradient.recorded:
        hoisted, theta, solver = hoist(lower, theta, z0, solver)
    else:
        hoisted = lower
    problem, start, leaves = ParametricProblem.of(hoisted, theta, z0)
    solver, problem = equipped(problem, leaves, start, gradient, solver)
    checks = Checks(on_failure)
    # Under a transform, `requires_grad` does not show what is differentiated.
    wanted = gradient.expects_theta and torch.is_grad_enabled() and not transforms_active()
    if wanted and not any(leaf.requires_grad for leaf in leaves):
        checks.held()
    if wanted:
        checks.fixed(lower.term)
    solve = Solving(solver, checks, gradient, hoisted=hoisted is not lower, objective=lower.objective)
    found = problem.layout.unravel(_solved(problem, leaves, start, gradient, solve))
    for leaf in tree.leaves(found):
        if leaf.requires_grad and not transforms_active():
            leaf.register_hook(_refuse_sparse)
    return found


@without
def _solved(problem: ParametricProblem, leaves: list[Tensor], z0: Tensor, gradient: Strategy, solve: Solving) -> Tensor:
    if torch.is_grad_enabled() or transforms_active():
        return gradient.rule(problem, solve).attach(problem, leaves, z0)
    at = problem.bind([leaf.detach() for leaf in leaves])
    return solve(at, at.place(gradient.start, z0))


def _refuse_sparse(gradient: Tensor | None) -> None:
    """Raise for a sparse upper gradient; None is the gradient of a solution that the upper objective does not use."""
    if gradient is not None and gradient.is_sparse:
        raise StructureError(
            "the upper gradient in z must be dense, but is sparse, as embeddings with sparse=True make it. Set "
            "sparse=False in the upper objective, or use `functionalize`, which sets it."
        )
