"""The one loop of all iterative lower solvers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import all_true, in_lanes, stride, surely, transforms_active
from blo.solvers._base import Problem, Solution, Solver
from blo.solvers._confirm import aim, confirmed, measured
from blo.solvers._running import Running

#: Steps after which it is first looked at whether a solve still improves, and most steps between two such looks.
_FIRST, _PERIOD = 16, 256
#: Share of the least residual so far that counts as an improvement.
_GAIN = 0.5
#: Steps after which an equilibrium is given up whose least residual has not fallen below this share of what it was. An
#: iteration that is merely slow gains more, or arrives after the limits of all solvers.
_PATIENCE, _SOME = 128, 0.9
#: Called with the number of steps made so far and the state, before each further step.
Watch: TypeAlias = Callable[[int, Any], None]


class Iterative(Solver, abc.ABC):
    """A solver that repeats one step. A step is a `move` to a trial point and a `look` at it.

    Subclasses never loop and never stop: `run` does, for every lane on its own residual. A state is a named tuple of
    tensors with the lanes in front: `z`, the gradient `slope` there, the point `trial` to look at next, and what else
    the solver keeps; its method `anew(gradient)` returns it with the slopes computed anew.

    Attributes:
        max_steps: most steps.
        tol: residual at which a lane stops; None for exactly `max_steps` steps.
        relative: `tol` is in units of the curvature where that is below 1: an objective in a small unit is solved as
            well.
    """

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
        """Return the state after the gradient at the trial point is known: the trial is taken, or taken back."""

    def aimed(self, state: Any, limit: Tensor, unit: Tensor) -> Any:
        """Return the state told the residual to reach, shape `lanes`, and its unit, `(*lanes, 1)`; few solvers care."""
        return state

    def carried(self, state: Any) -> Sequence[Tensor]:
        """Return what the next call continues from, if the solver is one that can."""
        return ()

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        return run(self, problem, z0)


def run(solver: Iterative, problem: Problem, z0: Tensor, watch: Watch | None = None) -> Solution:
    """Step until every lane's residual is at most `solver.tol`, or `solver.max_steps` times.

    A lane whose residual is NaN makes one more step, which carries the NaN into z and its derivatives, and stops.

    What is known at the start may be untrue where a lane stops: the curvature, and the rounding of the gradient below
    which no residual can be asked for. Both are looked at again there, and a lane that was stopped too early goes on.
    A lane that does not improve stops where its residual is no more than rounding, or noise of the objective's own.
    """
    if solver.tol is None and watch is None:
        return _march(solver, problem, z0)
    state, steps = begin(solver, problem, z0), 0
    while steps < solver.max_steps:
        state, done, lost = _looked(solver, problem, state, steps)
        if done is not None and steps % stride(z0) == 0 and all_true(done):
            break
        if watch is not None:
            watch(steps, state)
        state = _step(solver, problem, state, done, lost, last=steps == solver.max_steps - 1)
        steps += 1
    return _finish(solver, problem, state, steps)


def _march(solver: Iterative, problem: Problem, z0: Tensor) -> Solution:
    """Make all steps: nothing is measured, so no lane rests, and nothing looks at the last trial."""
    state = solver.move(problem, solver.start(problem, z0))
    for _ in range(solver.max_steps - 1):
        state = solver.move(problem, solver.look(problem, state))
    return Solution(state.trial, None, None, solver.max_steps, carried=solver.carried(state))


def valued_gradient(problem: Problem, z: Tensor) -> Tensor:
    """Return the gradient where the objective has a value, NaN where it has none: left of zero, `log` has a slope."""
    if not problem.symmetric:
        return problem.gradient(z)
    value, slope = problem.evaluate(z)
    return torch.where(torch.isfinite(value).unsqueeze(-1), slope, torch.nan)


def begin(solver: Iterative, problem: Problem, z0: Tensor) -> Running:
    """Return what the loop begins with. Where nothing is measured there is no aim, and no work is spent on one."""
    begun = solver.start(problem, z0)
    if solver.tol is None:
        # On the CPU it is seen without waiting for an accelerator that no lane rests.
        none = torch.zeros((), dtype=z0.dtype, device="cpu")
        inf = torch.full_like(none, torch.inf)
        no = none > 0
        return Running(begun, none, none, no, none, inf, none, none, inf, no, no, inf, none, no)
    limit, unit = aim(solver, problem, begun.z.detach(), begun.slope.detach())
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


def advance(solver: Iterative, problem: Problem, state: Running, first: int, steps: int) -> Running:
    """Make the steps numbered `first` to `first + steps - 1` of `run` again, from the state before them."""
    for index in range(first, first + steps):
        state, done, lost = _looked(solver, problem, state, index)
        state = _step(solver, problem, state, done, lost, last=index == solver.max_steps - 1)
    return state


def _finish(solver: Iterative, problem: Problem, state: Running, steps: int) -> Solution:
    """Return the solution that a state stands for."""
    if solver.tol is None:
        return Solution(state.state.trial, None, None, steps, carried=solver.carried(state.state))
    state = measured(solver, problem, state)
    if steps == solver.max_steps or not all_true(state.resting):
        state = measured(solver, problem, confirmed(solver, problem, state))
    z, slope = state.state.z, state.state.slope.detach()
    return Solution(z, state.residual, state.limit, steps, slope, state.floor, state.random, stuck=state.stuck)


def _looked(solver: Iterative, problem: Problem, state: Running, index: int) -> tuple[Running, Tensor | None, Tensor]:
    """Return what `_look` does, after a look at the limits when all lanes would stop."""
    state = measured(solver, problem, state)
    if solver.tol is not None and not problem.symmetric:
        state = _outlasted(state)
    done, lost = _look(solver, state)
    if done is None:
        return state, done, lost
    stalled = None
    if _due(index + 1):
        # A lane that has come down to rounding would go on to the last step.
        stalled = ~(state.residual < _GAIN * state.mark) & torch.isfinite(state.mark)
        state = state._replace(mark=torch.minimum(state.mark, state.residual))
    elif index % stride(state.limit):
        return state, done, lost
    if all_true(done if stalled is None else done | stalled):
        state = measured(solver, problem, confirmed(solver, problem, state, stalled))
        done, lost = _look(solver, state)
    return state, done, lost


def _outlasted(state: Running) -> Running:
    """Return the state with the lanes told that run in circles: a fixed point has no objective that would fall."""
    residual = state.residual.detach()
    gained = residual < _SOME * state.least
    since = torch.where(gained, 0.0, state.since + 1)
    stuck = state.stuck | ((since >= _PATIENCE) & (residual > state.limit))
    return state._replace(least=torch.where(gained, residual, state.least), since=since, stuck=stuck)


def _due(steps: int) -> bool:
    """Tell whether progress is looked at after so many steps."""
    return steps % _PERIOD == 0 or (steps >= _FIRST and steps & (steps - 1) == 0)


def _look(solver: Iterative, state: Running) -> tuple[Tensor | None, Tensor]:
    """Return which lanes stop here, or None where nothing is measured, and which are lost after one more step."""
    if solver.tol is None:
        return None, state.lost
    return state.resting, state.residual.isnan()


def _step(
    solver: Iterative, problem: Problem, before: Running, done: Tensor | None, lost: Tensor, *, last: bool
) -> Running:
    moved = solver.move(problem, before.state)
    # Nothing looks at the last trial when nothing is measured.
    after = moved if last and solver.tol is None else solver.look(problem, moved)
    # A problem of its own has stopped the loop before it could be done here, and often no lane of a batch is done yet.
    if done is not None and (done.ndim or done.device.type != "cpu" or transforms_active()) and not surely(~done):
        after = tree.map(lambda old, new: in_lanes(done, old, new), before.state, after)
    return before._replace(state=after, lost=lost)
