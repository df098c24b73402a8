"""Checks of one call: whether solves converged, constraints are degenerate and values are finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import all_true, as_tensor, plain, sums_are_finite
from blo._findings import Findings
from blo._remedies import BIND, EARLY, FLOOR, LOOK, RANDOM, STUCK, remedy_of
from blo._term import Counts
from blo._vectors import length
from blo._warned import one_of_a_kind, warn
from blo.errors import ConvergenceError, ConvergenceWarning, FixedStepsWarning
from blo.linsolve import LinearSolution
from blo.solvers import Solution

__all__ = ["Checks", "one_of_a_kind", "unasked"]


def _most(numbers: Tensor | float) -> float:
    return float(plain(as_tensor(numbers)).max())


def unasked(dtype: torch.dtype) -> float:
    """Return the largest residual that counts as a solution where the solver has no tolerance.

    A single step solves a linearised problem exactly, so the limit is a multiple of the rounding.
    """
    return float(10 * torch.finfo(dtype).eps ** 0.5)


@dataclass(frozen=True)
class Checks(Findings):
    """The checks of one call: whether solves have converged and results can be trusted, and what to do if not."""

    def lower(self, solution: Solution, remedy: Callable[[], str] = lambda: LOOK) -> None:
        """Report a lower solve that diverged or stopped early; `remedy` returns the advice for a diverged one."""
        # A solver that takes back bad steps may stay at a finite point where the gradient is NaN.
        residual = solution.residual
        self.all_finite([(solution.z, "the lower solution"), (residual, "the residual of the lower solution")], remedy)
        if self.off:
            return
        if solution.random is not None and bool(plain(solution.random).any()):
            self.random(solution.random)
        elif solution.residual is not None and solution.tol is not None:
            self.stationary(solution.residual, solution.tol, solution.floor, solution.stuck)

    def random(self, lanes: Tensor) -> None:
        """Report an objective that is not a function, in these lanes."""
        if not self.off:
            flags = plain(lanes)
            of = f" in {int(flags.sum())} of {flags.numel()} problems" if flags.ndim else ""
            self.found(RANDOM.format(lanes=of), ConvergenceError, ConvergenceWarning)

    def stationary(
        self, residual: Tensor, tol: Tensor | float, floor: Tensor | None = None, stuck: Tensor | None = None
    ) -> None:
        """Report lanes whose projected-gradient residual exceeds the tolerance.

        `floor` marks those limited by rounding, `stuck` those that stopped because nothing improved.
        """
        # Negated, so that a residual of NaN counts as missed.
        missed = plain(~(residual <= tol))
        late = int(missed.sum())
        if not self.off and late:
            asked = _most(tol)
            ended, circling = (lanes is not None and bool(plain(lanes).any()) for lanes in (floor, stuck))
            self.found(
                f"the lower solve has not converged in {late} of {missed.numel()} problems: residual "
                f"{float(plain(residual).max()):.2e}, tolerance {asked:.2e}. An implicit gradient there is not that "
                f"of the solution. {FLOOR if ended else STUCK if circling else EARLY}",
                ConvergenceError,
                ConvergenceWarning,
            )

    def fixed_steps(self, residual: Tensor, tol: Tensor | float) -> None:
        """Warn of lanes in which a fixed number of steps ended away from the solution."""
        missed = plain(~(residual <= tol))
        late = int(missed.sum())
        if late:
            warn(
                f"the lower solve has not converged in {late} of {missed.numel()} problems: its fixed number of steps "
                f"ended at a residual of {float(plain(residual).max()):.2e}, above {_most(tol):.2e}, measured in the "
                "backward pass. An implicit gradient there is not that of the solution. Make more steps, use a solver "
                "with a tolerance, or differentiate with Unrolled(). If the steps did reach the solution, data that "
                f"the objective captures have changed since. {BIND}",
                FixedStepsWarning,
            )

    def changed(self, then: Solution | None, slope: Tensor | None, again: Callable[[], Tensor]) -> None:
        """Report an objective whose gradient at the lower solution is not that of the solve.

        Only lanes that had converged are tested. Their gradients should agree up to the tolerance of the solve and to
        rounding. If they do not, the gradient is computed twice more, as in the solve: for an objective of lower
        precision, or with an operation that is not deterministic, these two differ as well, and that is allowed for.

        Args:
            then: what the solve reported; if it measured no residual, there is nothing to compare with.
            slope: the gradient now, shape `(*lanes, n)`; `vmap` over the derivative alone adds lanes. None: compute it.
            again: computes it again.
        """
        if self.off or then is None or then.slope is None or then.residual is None or then.tol is None:
            return
        before = then.slope
        slope = again() if slope is None else slope
        # A change of the gradient by the tolerance moves the solution as far as the solve may have missed it.
        limit = 10 * torch.maximum(as_tensor(then.tol).to(then.residual), then.residual)
        limit = torch.where(then.residual <= then.tol, limit, torch.inf)

        def gap(now: Tensor) -> Tensor:
            now = plain(now)
            if now.shape == before.shape:
                return length(now - before, keepdim=False)
            # `vmap` repeats the same problems in an unknown order, so only the largest norms can be compared.
            return (length(now).max() - length(before).max()).abs()

        limit = limit + 100 * torch.finfo(slope.dtype).eps * length(before, keepdim=False)
        limit = limit if plain(slope).shape == before.shape else limit.max()
        late = plain(gap(slope) > limit)
        if not bool(late.any()):
            return
        first, second = plain(again()), plain(again())
        late = (gap(first) > limit + 10 * length(first - second, keepdim=False)) & late
        if bool(late.any()):
            self.found(
                f"the objective has changed between the solve and its backward pass, in {int(late.sum())} of "
                f"{late.numel()} problems: its gradient at the solution differs by {float(gap(first).max()):.2e} from "
                f"that of the solve, whose residual was {float(then.residual.max()):.2e}. The backward pass evaluates "
                f"the objective again. {BIND}",
                ConvergenceError,
                ConvergenceWarning,
            )

    def repeated(self, apart: Tensor, limit: float) -> None:
        """Report steps of a solver that lead to another point when they are repeated.

        Args:
            apart: the distance, relative to the solution or to its distance from the start, shape `lanes`.
            limit: the largest distance that rounding explains.
        """
        if self.off:
            return
        late = plain(apart > limit)
        if bool(late.any()):
            self.found(
                f"the objective has changed between the solve and its backward pass, in {int(late.sum())} of "
                f"{late.numel()} problems: the solver's steps, when repeated, end at another point, at a "
                f"relative distance of {float(plain(apart).max()):.2e}. {BIND}",
                ConvergenceError,
                ConvergenceWarning,
            )

    def linear(self, solution: LinearSolution, tol: float | None) -> None:
        """Report a linear solve that stopped early, or curvature that is not positive on the tangent space."""
        if self.off:
            return
        indefinite = int(solution.indefinite.sum())
        self.finite(solution.x, "the adjoint")
        # A Krylov solver stops at a NaN in the Hessian and returns the finite iterate before it.
        self.finite(solution.residual, "the residual of the adjoint system")
        if indefinite:
            self.found(
                f"the curvature is not positive on the tangent space in {indefinite} of "
                f"{solution.indefinite.numel()} problems: the point is not an isolated minimiser, and its derivative "
                f"may not exist. The adjoint returned has a relative residual of {float(solution.residual.max()):.2e}. "
                "Add a proximal term to the objective, or `damping` to the linear solver.",
                ConvergenceError,
                ConvergenceWarning,
            )
        late = int((~solution.converged(tol)).sum())
        # Curvature that is not positive may end a solver early, and has been reported above.
        if late and not indefinite:
            self.found(
                f"the linear solve has not converged in {late} of {solution.residual.numel()} problems: relative "
                # Without a tolerance x must only be better than zero, whose relative residual is 1.
                f"residual {float(solution.residual.max()):.2e}, tolerance {1.0 if tol is None else tol:.2e}. "
                + remedy_of(solution.method),
                ConvergenceError,
                ConvergenceWarning,
            )

    def adjoint(
        self,
        linear: LinearSolution,
        tol: float | None,
        counts: Callable[[], Counts] | None,
        residual: Tensor | None,
        limit: Tensor | float | None,
        *,
        asked: bool,
    ) -> None:
        """Check all conditions of an implicit gradient, and report those that fail.

        Args:
            linear: the adjoint.
            tol: the tolerance of its relative residual.
            counts: counts the directions at the lower solution; None without a constraint.
            residual: the residual of the lower solution, shape `lanes`; None if the solver has tested it.
            limit: the residual above which it is no solution, a number or shape `lanes`; None for `unasked`.
            asked: whether the lower solver has a tolerance.
        """
        good, values = [~linear.indefinite, linear.converged(tol)], [linear.x, linear.residual]
        limit = unasked(linear.x.dtype) if limit is None else limit
        if residual is not None:
            good, values = [*good, residual <= limit], [*values, residual]
        found = None if counts is None else counts()
        if found is not None:
            good.append(found.degenerate.eq(0))
        # If everything is in order, one test of the sums and one of the flags suffice. The reports below wait for the
        # device once for each number.
        if sums_are_finite(values) and all_true(*good):
            return
        if residual is not None:
            self.finite(residual, "the residual of the lower solution")
            if asked:
                self.stationary(residual, limit)
            else:
                self.fixed_steps(residual, limit)
        self.linear(linear, tol)
        if found is not None:
            self.degenerate(found)
