"""Checks the types of the parts of a call, chooses the default solver, and prepares the problem for the solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blo._autocast import Autocast, without
from blo._lower import LowerProblem
from blo._objective import Minibatched
from blo._parametric_problem import ParametricProblem
from blo._torch import any_autocast
from blo.errors import StructureError
from blo.gradients import Strategy
from blo.solvers import Solver, default_solver


def require_parts(lower: LowerProblem, solver: Solver | None, gradient: Strategy | None) -> None:
    """Raise if a part has the wrong type, or is a class instead of an instance.

    Raises:
        StructureError: with the name of the argument.
    """
    parts = {"lower": (lower, LowerProblem), "solver": (solver, Solver), "gradient": (gradient, Strategy)}
    for name, (given, kind) in parts.items():
        if not (isinstance(given, kind) or (given is None and name != "lower")):
            found = f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"
            examples = {"lower": "LowerProblem(objective)", "solver": "LBFGS()", "gradient": "Implicit(CG())"}
            raise StructureError(f"`{name}` must be like blo.{examples[name]}, but is {found}.")


def equipped(
    problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor, gradient: Strategy, solver: Solver | None
) -> tuple[Solver, ParametricProblem]:
    """Return the solver, the default one for None, and the problem prepared for this solver.

    Autocast applies to a fixed number of steps. A solve with a tolerance is made and differentiated without it: the
    rounding of autocast is far above any tolerance, costs more time in extra steps than it saves, and is amplified
    where the residuals of data are small compared with their terms.

    Raises:
        StructureError: in half precision without a solver; for a solver or a strategy that does not take `batches`.
    """
    if isinstance(problem.lower.objective, Minibatched):
        solver = _stepwise(solver, gradient)
    elif solver is None:
        solver = _default(problem, leaves, z0, gradient)
    elif solver.tol and solver.tol != math.inf:
        # With tol=inf, z may be anywhere, so `accuracy` stays 0 and `slack` is not increased.
        problem = replace(problem, accuracy=solver.tol)
    if any_autocast() and (solver.tol is None or not problem.runs(leaves, z0)):
        problem = problem.under(Autocast.current())
    return solver, problem


def _stepwise(solver: Solver | None, gradient: Strategy) -> Solver:
    """Return the solver, if it and the strategy support a different objective in each step.

    Raises:
        StructureError: naming the argument.
    """
    if solver is None or not solver.takes_batches or solver.tol is not None or getattr(solver, "step", 1) is None:
        found = "is left out" if solver is None else f"is {type(solver).__name__}"
        if solver is not None and solver.takes_batches:
            found += " with a tolerance" if solver.tol is not None else " without a step"
        raise StructureError(
            f"with `batches`, `solver` must make a fixed number of steps of given sizes, but {found}. Use "
            "ProjectedGradient(step, max_steps, tol=None), TorchOpt(optimizer, steps) or TorchOptim(factory, steps)."
        )
    if gradient.expects_theta and not gradient.unrolls:
        raise StructureError(
            f"with `batches`, `gradient` must differentiate the steps, but is {type(gradient).__name__}, which "
            "needs the point where one objective is stationary. Use Unrolled(), or Zero()."
        )
    return solver


@without
def _default(problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor, gradient: Strategy) -> Solver:
    """Return the solver for a problem that comes without one.

    Raises:
        StructureError: in half precision, in which a residual cannot show convergence.
    """
    if problem.layout.dtype not in (torch.float32, torch.float64):
        raise StructureError(
            f"without `solver`, z0 must be float32 or float64, but is {problem.layout.dtype}, in which a "
            "residual cannot show convergence. Keep z in float32 and cast it inside the objective, or pass a solver "
            "with a fixed number of steps."
        )
    with torch.no_grad():
        term = problem.term([leaf.detach() for leaf in leaves])
    return default_solver(term, problem.symmetric, z0, followed=gradient.unrolls)
