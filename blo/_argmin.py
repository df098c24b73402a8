"""The differentiable lower solve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blo import tree
from blo._autocast import Autocast, without
from blo._autodiff import all_true, plain, transforms_active
from blo._bound import Bound
from blo._checkpoints import sound_checkpoints
from blo._draws import may_draw
from blo._entrance import outside_compile, with_numbers
from blo._failures import LOOK, SMALLER, Checks, unasked
from blo._hoist import hoist
from blo._lower import LowerProblem
from blo._problem import FlatProblem
from blo._replay import generators
from blo._types import OnFailure, Tree
from blo.errors import StructureError
from blo.gradients import Implicit, Strategy, Unrolled, Zero
from blo.solvers import Iterative, Solution, Solver, Watch, advance, begin, default_solver, run
from blo.solvers._stopping import Place, repeats, solved


@dataclass
class Solving:
    """A lower solver as the callable that strategies receive; keeps what the last solve reported.

    Args:
        solver: the solver.
        checks: what to do with its findings.
        gradient: what is made of the solution.
        hoisted: theta brings captured tensors along, which are none of the solver's business.
        defer: leave a residual that the solver did not measure to the strategy, which has the gradient at hand.
        drawing: the objective holds something that it may draw from besides the generators of torch.
    """

    solver: Solver
    checks: Checks
    gradient: Strategy
    hoisted: bool = False
    defer: bool = False
    drawing: bool = False
    last: Solution | None = field(default=None, init=False)
    start: Tensor | None = field(default=None, init=False)

    def __call__(self, problem: Bound, z0: Tensor) -> Tensor:
        return self._report(problem, z0, self._solve(problem, z0, None))

    def quietly(self, problem: Bound, z0: Tensor) -> Tensor:
        solution = self._solve(problem, z0, None)
        if not transforms_active():
            self.checks.lower(solution, lambda: self._origin(problem, z0, solution.z))
        return solution.z if problem.recorded else solution.z.detach()

    def closely(self, problem: Bound, z0: Tensor, wanted: Tensor, *, found: bool = False) -> tuple[Tensor, Tensor]:
        solver = self.solver
        if solver.tol is not None and is_dataclass(solver):
            least = torch.finfo(wanted.dtype).tiny  # what is wanted may vanish in half precision
            solver = replace(solver, tol=min(solver.tol, max(float(plain(wanted.detach()).min()), least)))
        rests = found and solver.tol is None
        solution = Solution(z0, None, None, 0) if rests else self._solve(problem, z0, None, solver)
        z, residual = solution.z.detach(), solution.residual
        if residual is None:
            residual = z.new_zeros(z.shape[:-1]) if self.checks.off else problem.residual(z, problem.gradient(z))
        remedy = lambda: self._origin(problem, z0, z)  # noqa: E731
        self.checks.all_finite([(z, "a further lower solution"), (residual, "its residual")], remedy)
        return z, residual

    def watched(self, problem: Bound, z0: Tensor, watch: Watch) -> Tensor:
        return self._report(problem, z0, self._solve(problem, z0, watch))

    def compare(self, slope: Tensor | None, again: Callable[[], Tensor]) -> None:
        if self.last is not None:
            self.checks.changed(self.last, slope, again)

    def confirm(self, problem: Bound, z: Tensor, slope: Tensor) -> Tensor | None:
        last, confirmed = self.last, isinstance(self.solver, Iterative) and self.solver.tol is not None
        if last is None or confirmed or self.checks.off or self.solver.tol == math.inf:
            return None
        if last.residual is not None and last.tol is not None and not all_true(problem.residual(z, slope) <= last.tol):
            return None  # it was reported by the solve, or the data have changed, which `compare` reports
        start = z if self.start is None or self.start.shape != z.shape else self.start
        tol, asked = unasked(z.dtype) if self.solver.tol is None else self.solver.tol, self.solver.tol is not None
        limit = solved(tol, problem, Place(z.detach(), slope.detach(), start, slope.detach()), asked=asked)
        self.last = replace(last, limit=limit.detach())
        return limit

    def compare_points(self, apart: Tensor) -> None:
        self.checks.repeated(apart, torch.finfo(apart.dtype).eps ** 0.5)

    def begin(self, problem: Bound, z0: Tensor) -> Any:
        return begin(self._iterative, self._told(problem), z0)

    def again(self, problem: Bound, state: Any, first: int, steps: int) -> Any:
        return advance(self._iterative, self._told(problem), state, first, steps)

    def answer(self, state: Any) -> Tensor:
        z: Tensor = state.state.trial if self.solver.tol is None else state.state.z
        return z

    @property
    def _iterative(self) -> Iterative:
        if not isinstance(self.solver, Iterative):
            raise StructureError(
                f"`Unrolled` with `last` or `checkpoint` repeats steps of the solver, but {type(self.solver).__name__} "
                "has none that can be repeated. Use ProjectedGradient, or plain Unrolled()."
            )
        return self.solver

    def _solve(self, problem: Bound, z0: Tensor, watch: Watch | None, solver: Solver | None = None) -> Solution:
        solver = self.solver if solver is None else solver
        if self.hoisted:
            problem = replace(problem, theta=problem.theta[0])
        problem = self._told(problem)
        watched = not (self.checks.off or self._samples)
        sources = list(generators([z0.device])) if watched else []
        before = [source.get_state() for source in sources]
        with torch.set_grad_enabled(problem.recorded):
            found = solver.solve(problem, z0) if watch is None else run(self._iterative, problem, z0, watch)
        drawn = watched and self.drawing
        if not drawn and all(torch.equal(g.get_state(), state) for g, state in zip(sources, before, strict=True)):
            return found
        # Random numbers were drawn: by the objective, which may seed them anew each time, or by the solver. Noise may
        # vanish at the solution.
        rest, lanes = problem.detach(), torch.zeros_like(z0[..., 0], dtype=torch.bool)
        for place in (z0.detach(), found.z.detach()):
            slope = rest.gradient(place).detach()
            lanes = lanes | ~repeats(rest, Place(place, slope, place, slope))
        return replace(found, random=lanes if found.random is None else found.random | lanes)

    @property
    def _samples(self) -> bool:
        """Whether the steps as they were made are all that counts, so that their objective may be random."""
        recorded = isinstance(self.gradient, Unrolled) and self.gradient.recorded and self.gradient.last is None
        return self.solver.tol is None and (recorded or isinstance(self.gradient, Zero))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to differentiate through: no step was made, from a start that is a constant."""
        if not isinstance(self.gradient, Unrolled) or self.gradient.start is not None or self.last is None:
            return False
        return self.last.steps == 0 and self.last.residual is not None

    def _told(self, problem: Bound) -> Bound:
        return replace(problem, followed=True) if isinstance(self.gradient, Unrolled) else problem

    def _origin(self, problem: Bound, z0: Tensor, z: Tensor) -> str:
        """Say where a NaN of the lower solution z comes from, as far as the arguments and two gradients tell."""
        look = "Look at what it was computed from."
        if not _finite([z0]):
            return f"The start of the solver is not finite itself: `z0`, or what `start(theta)` returned. {look}"
        if not _finite(tree.leaves(problem.theta[0] if self.hoisted else problem.theta)):
            return f"`theta` is not finite itself. {look}"
        if not _finite([self._told(problem).detach().gradient(z0)]):
            return (
                "The objective has no finite gradient at the start of the solver, so no `step` will help: look for NaN "
                "in its data, and at the objective with torch.autograd.detect_anomaly."
            )
        kind = type(problem.term).__name__
        if not _finite([problem.prox(z0, 1.0)]):
            return f"`{kind}` has no finite point nearest to the start of the solver: the set may be empty."
        slope = self._told(problem).detach().gradient(z.detach())
        if _finite([z, slope]) and not _finite([problem.prox(z.detach() - slope, 1.0)]):
            return (
                f"`{kind}` finds no point nearest to a gradient step from where the solver ended: at the edge of the "
                "set the gradients of constraints may vanish or depend on each other."
            )
        return SMALLER if hasattr(self.solver, "step") else LOOK

    def _report(self, problem: Bound, z0: Tensor, solution: Solution) -> Tensor:
        unmeasured = solution.residual is None and solution.tol is not None
        if unmeasured and not (self.defer or self.checks.off):
            slope = problem.gradient(solution.z)
            solution = replace(solution, residual=problem.residual(solution.z, slope), slope=slope)
        # A report is kept for as long as the caller likes, and must not keep the graph of the steps alive.
        parts: dict[str, Any] = {
            name: value.detach() for name, value in vars(solution).items() if isinstance(value, Tensor)
        }
        self.last, self.start = replace(solution, **parts), z0.detach()
        if isinstance(self.gradient, Unrolled) or not transforms_active():
            self.checks.lower(solution, lambda: self._origin(problem, z0, solution.z))
        if self.idle:
            self.checks.idle()
        return solution.z if problem.recorded else solution.z.detach()


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(plain(tensor)).all()) for tensor in tensors)


def require_parts(lower: LowerProblem, solver: Solver | None, gradient: Strategy | None) -> None:
    """Refuse parts in each other's places, and classes in the place of their instances.

    Raises:
        StructureError: naming the argument.
    """
    parts = {"lower": (lower, LowerProblem), "solver": (solver, Solver), "gradient": (gradient, Strategy)}
    for name, (given, kind) in parts.items():
        if not (isinstance(given, kind) or (given is None and name != "lower")):
            found = f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"
            examples = {"lower": "LowerProblem(objective)", "solver": "LBFGS()", "gradient": "Implicit(CG())"}
            raise StructureError(f"`{name}` must be like blo.{examples[name]}, but is {found}.")


def equipped(
    problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, gradient: Strategy, solver: Solver | None
) -> tuple[Solver, FlatProblem]:
    """Return the solver, the default one for None, and the problem as this solver is to see it.

    Autocast acts on a fixed number of steps. A solve with a tolerance is made and differentiated without it: the
    rounding of autocast is far above any tolerance, costs more steps than it speeds up, and is magnified where the
    residuals of data are small beside their terms.

    Raises:
        StructureError: in half precision without a solver.
    """
    if solver is None:
        solver = _default(problem, leaves, gradient)
    elif solver.tol and solver.tol != math.inf:
        # A solver that accepts any residual says nothing about how far z is from constraints that hold it.
        problem = replace(problem, accuracy=solver.tol)
    autocast = Autocast.current()
    if autocast.on and (solver.tol is None or not without(problem.runs)(leaves, z0)):
        problem = problem.under(autocast)
    return solver, problem


@without
def _default(problem: FlatProblem, leaves: Sequence[Tensor], gradient: Strategy) -> Solver:
    """Return the solver for a problem that comes without one.

    Raises:
        StructureError: in half precision, which shows no solution to be one.
    """
    if problem.layout.dtype not in (torch.float32, torch.float64):
        raise StructureError(
            f"without `solver`, z0 must be float32 or float64, but is {problem.layout.dtype}, in which no "
            "residual shows a solution to be one. Keep z in float32 and cast it inside the objective, or ask for a "
            "fixed number of steps."
        )
    with torch.no_grad():
        term = problem.term([leaf.detach() for leaf in leaves])
    followed = isinstance(gradient, Unrolled)
    return default_solver(term, problem.symmetric, problem.layout.dtype, followed=followed)


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

    It is differentiated in reverse mode: by `.backward()`, `torch.func.grad`, `vjp` and `jacrev`, under `vmap`, and
    inside the objective of another lower problem. Derivatives may be nested to any order, as in
    `jacrev(jacrev(f))`, where the strategy allows it; those of `Implicit` are derivatives of the solution, those of
    `Unrolled` of the iteration. `ValueFunction`, `Unrolled(checkpoint=True)` and `Unrolled(mode="forward")` can be
    differentiated once.

    The forward mode of torch (`jvp`, `jacfwd`, and `hessian`, which is made of it) works with `Unrolled()` and
    `Unrolled(last=k)`, whose steps torch records; for other strategies use `jacrev(jacrev(f))` in place of `hessian`.

    Under `.backward()`, tensors that the objective captures are constants, unless `Unrolled` records its use of them;
    `torch.func` transforms reach captured tensors as well as theta.

    Args:
        lower: the lower problem.
        theta: upper variable, a tree of tensors, real or complex.
        z0: start of the solver, a tree of floating point tensors; a constant (but see `Unrolled.start`).
        solver: a lower solver. By default `LBFGS` where there is no constraint or there are bounds, `FISTA` for other
            sets and penalties, `FixedPoint` for equilibria, to a residual of 1e-11 (1e-5 in single precision), less
            where the objective's curvature is below 1. For `Unrolled`, at most 2,000 steps of `FISTA`
            for every objective.
        gradient: a strategy; `Implicit()` by default, with the linear solver that suits the adjoint system.
        on_failure: `"raise"`, `"warn"` or `"ignore"`; by default non-finite values raise and all else warns.

    Returns:
        A tree like `z0`.

    Raises:
        StructureError: if a part is none, or the objective or the set do not fit theta and z0.
        NonFiniteError: if the solution or the adjoint is not finite.
        ConvergenceError: in place of the warnings below, but for that of a theta without grad, if
            `on_failure="raise"`.
        ValueError: for any other `on_failure`.

    Warns:
        ConvergenceWarning: if a solve stopped early, or the curvature is not positive.
        DegenerateWarning: if an active constraint has multiplier zero.
        ConstantWarning: if theta does not enter the lower problem, or has no leaf that requires grad where gradients
            are enabled.

    What concerns the derivative is raised, or warned of, in the backward pass.
    """
    if torch.compiler.is_compiling() and isinstance(gradient, Unrolled) and gradient.recorded and transforms_active():
        solved = _argmin  # steps of a fixed number are traced into the caller's graph
    else:
        solved = outside_compile(_argmin)
    return solved(lower, theta, z0, solver, gradient, on_failure)


@sound_checkpoints
@with_numbers
def _argmin(
    lower: LowerProblem,
    theta: Tree,
    z0: Tree,
    solver: Solver | None,
    gradient: Strategy | None,
    on_failure: OnFailure | None,
) -> Tree:
    require_parts(lower, solver, gradient)
    gradient = Implicit() if gradient is None else gradient
    if transforms_active() and not (isinstance(gradient, Unrolled) and gradient.recorded):
        hoisted, theta = hoist(lower, theta, z0)
    else:
        hoisted = lower
    problem, start, leaves = FlatProblem.of(hoisted, theta, z0)
    solver, problem = equipped(problem, leaves, start, gradient, solver)
    checks = Checks(on_failure, measured=solver.tol is not None)
    wanted = gradient.expects_theta and torch.is_grad_enabled() and not transforms_active()
    if wanted and not any(leaf.requires_grad for leaf in leaves):
        checks.held()
    if wanted:
        checks.fixed(lower.term)
    solve = Solving(solver, checks, gradient, hoisted=hoisted is not lower, drawing=may_draw(lower.objective))
    found = problem.layout.unravel(without(gradient.attach)(problem, leaves, start, solve, checks))
    for leaf in tree.leaves(found):
        if leaf.requires_grad and not transforms_active():
            leaf.register_hook(_refuse_sparse)
    return found


def _refuse_sparse(gradient: Tensor | None) -> None:
    """Name what torch has no shape for in the backward pass; None is a gradient that nothing has reached."""
    if gradient is not None and gradient.is_sparse:
        raise StructureError(
            "the upper gradient in z must be dense, but is sparse, as embeddings with sparse=True make it. Use "
            "sparse=False in the upper objective, or `functionalize`, which does so."
        )
