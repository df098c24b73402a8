"""One lower solve as strategies see it, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import all_true, plain, transforms_active
from blo._bound import Bound
from blo._curvature import Place
from blo._draws import may_draw
from blo._failures import Checks, unasked
from blo._remedies import ASTRAY, SMALLER
from blo._replay import generators
from blo.errors import StructureError
from blo.gradients import Strategy
from blo.solvers import Iterative, Solution, Solver, Watch, advance, begin, run
from blo.solvers._stopping import repeats, solved


@dataclass
class Solving:
    """A lower solver as the callable that strategies receive; keeps what the last solve reported.

    Args:
        solver: the solver.
        checks: what to do with its findings.
        gradient: what is made of the solution.
        hoisted: theta holds the captured tensors beside the caller's theta; the solver gets the latter alone.
        at_once: the derivative is taken in the call that solves.
        objective: the caller's objective, searched for what it may draw from besides the generators of torch.
    """

    solver: Solver
    checks: Checks
    gradient: Strategy
    hoisted: bool = False
    at_once: bool = False
    objective: Any = None
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
        if self.last is not None and not (slope is None and self.at_once):
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
        drawn = watched and self._may_draw
        if not drawn and all(torch.equal(g.get_state(), state) for g, state in zip(sources, before, strict=True)):
            return found
        # Random numbers were drawn: by the objective, which may seed them anew each time, or by the solver. Noise may
        # vanish at the solution.
        rest, lanes = problem.detach(), torch.zeros_like(z0[..., 0], dtype=torch.bool)
        for place in (z0.detach(), found.z.detach()):
            slope = rest.gradient(place).detach()
            lanes = lanes | ~repeats(rest, Place(place, slope, place, slope))
        return replace(found, random=lanes if found.random is None else found.random | lanes)

    @cached_property
    def _may_draw(self) -> bool:
        return may_draw(self.objective)

    @property
    def _samples(self) -> bool:
        """Whether the steps as they were made are all that counts, so that their objective may be random."""
        return self.solver.tol is None and self.gradient.samples

    @property
    def idle(self) -> bool:
        """Whether there is nothing to differentiate through: no step was made, from a start that is a constant."""
        if not self.gradient.follows or self.gradient.start is not None or self.last is None:
            return False
        return self.last.steps == 0 and self.last.residual is not None

    def _told(self, problem: Bound) -> Bound:
        return replace(problem, followed=True) if self.gradient.follows else problem

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
        return SMALLER if hasattr(self.solver, "step") else ASTRAY

    def _report(self, problem: Bound, z0: Tensor, solution: Solution) -> Tensor:
        unmeasured = solution.residual is None and solution.tol is not None
        if unmeasured and not (self.checks.off or (self.at_once and self.gradient.measures)):
            slope = problem.gradient(solution.z)
            solution = replace(solution, residual=problem.residual(solution.z, slope), slope=slope)
        # A report is kept for as long as the caller likes, and must not keep the graph of the steps alive.
        parts: dict[str, Any] = {
            name: value.detach()
            for name, value in vars(solution).items()
            if isinstance(value, Tensor) and value.requires_grad
        }
        self.last, self.start = replace(solution, **parts) if parts else solution, z0.detach()
        if self.gradient.follows or not transforms_active():
            self.checks.lower(solution, lambda: self._origin(problem, z0, solution.z))
        if self.idle:
            self.checks.idle()
        return solution.z if problem.recorded else solution.z.detach()


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(plain(tensor)).all()) for tensor in tensors)
