"""The lower solver as strategies call it, and the reports on the solve and on its derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blo._autodiff import all_true, plain, transforms_active
from blo._curvature import Place
from blo._draws import may_draw
from blo._failures import Checks, unasked
from blo._objective import user_function
from blo._origin import origin
from blo._problem_at_theta import ProblemAtTheta
from blo._steps import SolverSteps
from blo._torch import generators
from blo.gradients import Optimality, Pulled, Strategy, Watch
from blo.linsolve import LinearSolution
from blo.solvers import Solution, Solver
from blo.solvers._stopping import repeats, solved


@dataclass
class Solving:
    """A lower solver as the callable that strategies receive. It keeps the report of the last solve.

    Args:
        solver: the solver.
        checks: checks and reports of this call.
        gradient: the strategy that differentiates the solution.
        hoisted: theta holds the captured tensors besides the caller's theta; the solver gets only the latter.
        at_once: the derivative is taken in the call that solves.
        objective: the caller's objective, searched for random sources other than the generators of torch.
    """

    solver: Solver
    checks: Checks
    gradient: Strategy
    hoisted: bool = False
    at_once: bool = False
    objective: Any = None
    last: Solution | None = field(default=None, init=False)
    start: Tensor | None = field(default=None, init=False)

    def __call__(self, problem: ProblemAtTheta, z0: Tensor, watch: Watch | None = None) -> Tensor:
        solution = self._solve(problem, z0, watch)
        unmeasured = solution.residual is None and solution.tol is not None
        # An implicit strategy in the same call measures the residual from the gradient that it needs at z anyway.
        if unmeasured and not (self.checks.off or (self.at_once and self.gradient.measures_residual)):
            slope = problem.gradient(solution.z)
            solution = replace(solution, residual=problem.residual(solution.z, slope), slope=slope)
        # A report is kept for as long as the caller likes, and must not keep the graph of the steps alive.
        parts: dict[str, Any] = {
            name: value.detach()
            for name, value in vars(solution).items()
            if isinstance(value, Tensor) and value.requires_grad
        }
        if solution.carried:
            parts["carried"] = [tensor.detach() for tensor in solution.carried]
        self.last, self.start = replace(solution, **parts) if parts else solution, z0.detach()
        if self.gradient.unrolls or not transforms_active():
            self.checks.lower(solution, self._remedy(problem, z0, solution.z))
        if self.idle:
            self.checks.idle()
        return solution.z if problem.recorded else solution.z.detach()

    def quietly(self, problem: ProblemAtTheta, z0: Tensor) -> Tensor:
        z = self._solve(problem, z0).z
        return z if problem.recorded else z.detach()

    def closely(
        self, problem: ProblemAtTheta, z0: Tensor, wanted: Tensor, *, found: bool = False
    ) -> tuple[Tensor, Tensor]:
        solver = self.solver
        if solver.tol is not None and is_dataclass(solver):
            least = torch.finfo(wanted.dtype).tiny  # the wanted residual may underflow in half precision
            solver = replace(solver, tol=min(solver.tol, max(float(plain(wanted.detach()).min()), least)))
        # A fixed number of steps has no tolerance that could be lowered, so a solution that was found stays as it is.
        rests = found and solver.tol is None
        solution = Solution(z0, None, None, 0) if rests else self._solve(problem, z0, solver=solver)
        z, residual = solution.z.detach(), solution.residual
        if residual is None:
            residual = z.new_zeros(z.shape[:-1]) if self.checks.off else problem.residual(z, problem.gradient(z))
        remedy = self._remedy(problem, z0, z)
        self.checks.all_finite([(z, "a further lower solution"), (residual, "its residual")], remedy)
        return z, residual

    @property
    def steps(self) -> SolverSteps:
        return SolverSteps.of(self.solver)

    @property
    def idle(self) -> bool:
        if not self.gradient.unrolls or self.gradient.start is not None or self.last is None:
            return False
        return self.last.steps == 0 and self.last.residual is not None

    def report(self, problem: ProblemAtTheta, z: Tensor, pulled: Pulled) -> None:
        if self.checks.off:
            return
        if pulled.linear is not None and pulled.optimality is not None:
            self.report_adjoint(problem, pulled.linear, pulled.optimality)
        # Unrolled steps were recorded or are compared when repeated, and within one call nothing changes in between.
        elif not (self.gradient.unrolls or self.at_once):
            self.checks.changed(self.last, None, lambda: problem.detach().gradient(z))
        if pulled.apart is not None:
            self.checks.repeated(pulled.apart, torch.finfo(pulled.apart.dtype).eps ** 0.5)
        self.checks.loose(pulled.loose)
        self.checks.gradients(pulled.cotangents)
        if self.gradient.expects_theta and not self.idle and all(part is None for part in pulled.cotangents):
            self.checks.constant()

    def report_adjoint(self, problem: ProblemAtTheta, linear: LinearSolution, optimality: Optimality) -> None:
        if self.checks.off:
            return
        self.checks.changed(self.last, optimality.slope, lambda: problem.detach().gradient(optimality.z))
        tol: Tensor | float | None = self.solver.tol
        limit: Tensor | float | None = self._confirm(problem, optimality.z, optimality.slope)
        trusted = tol is not None and limit is None  # the solver has confirmed its solution
        if self.last is not None and self.last.residual is None:
            trusted, tol = False, self.last.tol
            limit = tol if limit is None else limit
        residual, tangent = None if trusted else optimality.residual, optimality.tangent
        counts = None if tangent.whole else tangent.counts
        self.checks.adjoint(linear, self.gradient.tol, counts, residual, limit, asked=tol is not None)

    def _confirm(self, problem: ProblemAtTheta, z: Tensor, slope: Tensor) -> Tensor | None:
        """Return the residual, shape `lanes`, above which z with this gradient is not a solution.

        None if the solver has confirmed its solution itself.
        """
        last, confirmed = self.last, self.solver.confirms and self.solver.tol is not None
        if last is None or confirmed or self.solver.tol == math.inf:
            return None
        rest = problem.detach()
        if last.residual is not None and last.tol is not None and not all_true(rest.residual(z, slope) <= last.tol):
            return None  # it was reported by the solve, or the data have changed, which `changed` reports
        # `vmap` over the derivative alone adds lanes, for which the start is not known.
        start = z if self.start is None or self.start.shape != z.shape else self.start
        tol, asked = unasked(z.dtype) if self.solver.tol is None else self.solver.tol, self.solver.tol is not None
        limit = solved(tol, rest, Place(z.detach(), slope.detach(), start, slope.detach()), asked=asked)
        self.last = replace(last, limit=limit.detach())
        return limit

    def _solve(
        self, problem: ProblemAtTheta, z0: Tensor, watch: Watch | None = None, solver: Solver | None = None
    ) -> Solution:
        solver = self.solver if solver is None else solver
        if self.hoisted:
            problem = replace(problem, theta=problem.theta[0])
        if self.gradient.unrolls:
            problem = problem.follow()
        # If only the steps that were made are differentiated, their objective may be random.
        watched = not (self.checks.off or (self.solver.tol is None and self.gradient.allows_random))
        # Draws from torch's default generators show in their states. The code of the objective is searched for others.
        sources = list(generators([z0.device])) if watched and not solver.takes_start else []
        before = [source.get_state() for source in sources]
        with torch.set_grad_enabled(problem.recorded):
            found = solver.solve(problem, z0) if watch is None else self.steps.solver.solve(problem, z0, watch)
        drawn = watched and self._may_draw
        if not drawn and all(torch.equal(g.get_state(), state) for g, state in zip(sources, before, strict=True)):
            return found
        # Random numbers were drawn: by the objective, which may reset its seed each time, or by the solver. Evaluate
        # twice at the start and at the solution, since noise may vanish at one of them.
        rest, lanes = problem.detach().at_step(0), torch.zeros_like(z0[..., 0], dtype=torch.bool)
        for place in (z0.detach(), found.z.detach()):
            slope = rest.gradient(place).detach()
            lanes = lanes | ~repeats(rest, Place(place, slope, place, slope))
        return replace(found, random=lanes if found.random is None else found.random | lanes)

    @cached_property
    def _may_draw(self) -> bool:
        return may_draw(user_function(self.objective))

    def _remedy(self, problem: ProblemAtTheta, z0: Tensor, z: Tensor) -> Callable[[], str]:
        theta = problem.theta[0] if self.hoisted else problem.theta
        return lambda: origin(problem, theta, z0, z, self.solver)
