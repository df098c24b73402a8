"""The loop that all iterative lower solvers share."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import all_true, all_true_on_cpu, in_lanes, stride, transforms_active
from blo.solvers._base import Problem, Solution, Solver
from blo.solvers._confirm import Running, aim, confirmed, measured

#: Number of steps before the first test of whether the residual still decreases, and maximum number of steps between
#: two such tests.
_FIRST, _PERIOD = 16, 256
#: The residual still decreases if it is below this share of the smallest residual at earlier tests.
_GAIN = 0.5
#: A fixed-point iteration stops as stuck if in `_PATIENCE` steps the residual has not fallen below `_SOME` times its
#: smallest value. A slow iteration that converges within the default `max_steps` decreases it faster.
_PATIENCE, _SOME = 128, 0.9
#: Called before each step with the number of steps made so far and the state.
Watch: TypeAlias = Callable[[int, Any], None]


class Iterative(Solver, abc.ABC):
    """A solver that repeats one step: `move` computes a trial point, `look` evaluates it and accepts or rejects it.

    Subclasses contain no loop and no stopping criterion: both are in `solve`, which stops each lane by its residual.
    A state is a named tuple of tensors with leading lane axes: the iterate `z`, `slope` (the gradient there), the point
    `trial` to be evaluated next, and other data of the solver. Its method `anew(gradient)` returns the state with
    the gradients computed again.

    Attributes:
        max_steps: maximum number of steps.
        tol: residual at which a lane stops; None for exactly `max_steps` steps.
        relative: `tol` is in units of the curvature if that is below 1, so that scaling the objective by a small factor
            does not stop the solve earlier.
    """

    confirms = True

    max_steps: int
    tol: float | None
    relative: bool = False

    @abc.abstractmethod
    def start(self, problem: Problem, z0: Tensor) -> Any:
        """Return the state at z0, with the gradient there."""

    @abc.abstractmethod
    def move(self, problem: Problem, state: Any) -> Any:
        """Return the state with its next trial point."""

    @abc.abstractmethod
    def look(self, problem: Problem, state: Any) -> Any:
        """Evaluate the gradient at the trial point, and return the state with the trial accepted or rejected."""

    def aimed(self, state: Any, limit: Tensor, unit: Tensor) -> Any:
        """Return the state with the residual at which to stop, shape `lanes`, and its unit, shape `(*lanes, 1)`.

        By default the state is returned unchanged: only solvers whose steps depend on the criterion store it.
        """
        return state

    def carried(self, state: Any) -> Sequence[Tensor]:
        """Return the tensors from which the next call continues; none by default."""
        return ()

    def solve(self, problem: Problem, z0: Tensor, watch: Watch | None = None) -> Solution:
        """Make steps until the residual of every lane is at most `tol`, at most `max_steps` times.

        A lane whose residual is NaN makes one more step, which carries the NaN into z and its derivatives, and stops.

        The stopping criterion depends on the curvature and on the rounding error of the gradient. Both are estimated at
        the start and may differ where a lane stops. So they are estimated again there, and a lane that stopped too
        early continues. A lane whose residual no longer decreases stops if the residual is within the rounding error of
        the gradient, or within the noise of a random objective.

        Args:
            problem: the problem.
            z0: the start, shape `(*lanes, n)`.
            watch: called before each step with the number of steps made so far and the state of the loop.
        """
        if self.tol is None:
            return _march(self, problem, z0, watch)
        state, steps = begin(self, problem, z0), 0
        while steps < self.max_steps:
            state, done, lost = _tested(self, problem, state, steps)
            # On an accelerator the test waits for the device, so it is made only every few steps.
            if steps % stride(z0) == 0 and all_true(done):
                break
            if watch is not None:
                watch(steps, state)
            state = _step(self, problem, state, done, lost)
            steps += 1
        state = measured(problem, state)
        # The loop has not revised the stopping criterion of lanes that were still running after the last step.
        if steps == self.max_steps or not all_true(state.resting):
            state = measured(problem, confirmed(self, problem, state))
        z, slope = state.state.z, state.state.slope.detach()
        return Solution(z, state.residual, state.limit, steps, slope, state.floor, state.random, stuck=state.stuck)


def _march(solver: Iterative, problem: Problem, z0: Tensor, watch: Watch | None) -> Solution:
    """Make all steps without measuring residuals, so that no lane stops early."""
    state = solver.start(problem, z0)
    running = None if watch is None else _endless(state, z0)
    for steps in range(solver.max_steps):
        if watch is not None and running is not None:
            watch(steps, running._replace(state=state))
        state = _unmeasured(solver, problem, state, steps)
    return Solution(state.trial, None, None, solver.max_steps, carried=solver.carried(state))


def _unmeasured(solver: Iterative, problem: Problem, state: Any, index: int) -> Any:
    moved = solver.move(problem, state)
    # The last trial is the result, whatever its gradient: save the evaluation.
    return moved if index == solver.max_steps - 1 else solver.look(problem, moved)


def valued_gradient(problem: Problem, z: Tensor) -> Tensor:
    """Return the gradient, or NaN in the lanes where the objective is not finite.

    The gradient alone does not show that a point is outside the domain: torch also differentiates `log` left of zero.
    """
    if not problem.symmetric:
        return problem.gradient(z)
    value, slope = problem.evaluate(z)
    return torch.where(torch.isfinite(value).unsqueeze(-1), slope, torch.nan)


def begin(solver: Iterative, problem: Problem, z0: Tensor) -> Running:
    """Return the initial state of the loop."""
    begun = solver.start(problem, z0)
    if solver.tol is None:
        return _endless(begun, z0)
    limit, unit = aim(solver, problem, begun.z.detach(), begun.slope.detach())
    # NaN differs from every z, so the first call of `measured` computes the residual.
    nowhere, unknown = torch.full_like(begun.z, torch.nan), torch.full_like(limit, torch.inf)
    none = torch.zeros_like(limit, dtype=torch.bool)
    return Running(
        state=solver.aimed(begun, limit, unit),
        limit=limit,
        unit=unit,
        lost=none,
        place=nowhere,
        residual=unknown,
        origin=begun.z.detach(),
        first=begun.slope.detach(),
        mark=unknown,
        floor=none,
        random=none,
        least=unknown,
        since=torch.zeros_like(limit),
        stuck=none,
    )


def _endless(state: Any, z0: Tensor) -> Running:
    """Return the state of a loop without a tolerance: there is no stopping criterion to compute."""
    # These tensors are on the CPU, so that testing whether a lane has stopped never waits for an accelerator.
    none = torch.zeros((), dtype=z0.dtype, device="cpu")
    inf = torch.full_like(none, torch.inf)
    no = none > 0
    return Running(
        state=state,
        limit=none,
        unit=none,
        lost=no,
        place=none,
        residual=inf,
        origin=none,
        first=none,
        mark=inf,
        floor=no,
        random=no,
        least=inf,
        since=none,
        stuck=no,
    )


def advance(solver: Iterative, problem: Problem, state: Running, first: int, steps: int) -> Running:
    """Repeat the steps `first` to `first + steps - 1` of `solve` from the state before them."""
    for index in range(first, first + steps):
        if solver.tol is None:
            state = state._replace(state=_unmeasured(solver, problem, state.state, index))
        else:
            state = _step(solver, problem, *_tested(solver, problem, state, index))
    return state


def _tested(solver: Iterative, problem: Problem, state: Running, index: int) -> tuple[Running, Tensor, Tensor]:
    """Measure the residual, and return the state, the lanes that stop, and the lanes whose residual is NaN.

    If every lane would stop, the stopping criterion is revised first.
    """
    state = measured(problem, state)
    if not problem.symmetric:
        state = _outlasted(state)
    done, lost = state.resting, state.residual.isnan()
    stalled, steps = None, index + 1
    # Progress is tested after a power of two of steps, and later at regular intervals.
    if steps % _PERIOD == 0 or (steps >= _FIRST and steps & (steps - 1) == 0):
        # Without this test a lane whose residual has reached rounding error, above `tol`, would run to the last step.
        stalled = ~(state.residual < _GAIN * state.mark) & torch.isfinite(state.mark)
        state = state._replace(mark=torch.minimum(state.mark, state.residual))
    elif index % stride(state.limit):
        return state, done, lost
    if all_true(done if stalled is None else done | stalled):
        state = measured(problem, confirmed(solver, problem, state, stalled))
        done, lost = state.resting, state.residual.isnan()
    return state, done, lost


def _outlasted(state: Running) -> Running:
    """Return the state with the lanes marked as stuck whose residual has not decreased for many steps.

    A fixed-point iteration can cycle forever, because it has no objective that every step decreases.
    """
    residual = state.residual.detach()
    gained = residual < _SOME * state.least
    since = torch.where(gained, 0.0, state.since + 1)
    stuck = state.stuck | ((since >= _PATIENCE) & (residual > state.limit))
    return state._replace(least=torch.where(gained, residual, state.least), since=since, stuck=stuck)


def _step(solver: Iterative, problem: Problem, before: Running, done: Tensor, lost: Tensor) -> Running:
    after = solver.look(problem, solver.move(problem, before.state))
    # Lanes that have stopped keep their state. For a single problem outside transforms the loop has ended by then, and
    # while no lane of a batch has stopped there is nothing to select.
    if (done.ndim or done.device.type != "cpu" or transforms_active()) and not all_true_on_cpu(~done):
        after = tree.map(lambda old, new: in_lanes(done, old, new), before.state, after)
    return before._replace(state=after, lost=lost)
