"""The one loop of all iterative lower solvers."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import all_true, in_lanes, stride, surely, transforms_active
from blo.solvers._base import Problem, Solution, Solver
from blo.solvers._stopping import curvature, reachable, rounding

#: Steps after which it is looked at again what residual can be reached.
_PERIOD = 200


class State(Protocol):
    """What a solver carries from step to step: a named tuple of tensors, or tuples of them, with the lanes in front.

    Tensors that have no lanes in front are shared by all lanes, and do not rest when one of them does.

    Attributes:
        z: the current point, shape `(*lanes, n)`.
        slope: the gradient of the objective there.
        trial: where to look next; the solver's answer when it stops without measuring.
    """

    @property
    def z(self) -> Tensor: ...
    @property
    def slope(self) -> Tensor: ...
    @property
    def trial(self) -> Tensor: ...
    def anew(self, gradient: Callable[[Tensor], Tensor]) -> Any:
        """Return the state with the slopes that the next step is made from computed anew, all else kept."""


class Running(NamedTuple):
    """What the loop carries. Where nothing is measured all but the state is of shape `()` and on the CPU.

    Attributes:
        state: the solver's.
        limit: the residual at which each lane stops, shape `lanes`.
        unit: what the residual is measured in, shape `(*lanes, 1)`.
        lost: lanes whose last step was from a residual of NaN, shape `lanes`.
        place: where the residual was measured last, shape `(*lanes, n)`; NaN where it is to be measured anew.
        residual: what it was there, shape `lanes`; infinite where nothing is measured.
    """

    state: Any
    limit: Tensor
    unit: Tensor
    lost: Tensor
    place: Tensor
    residual: Tensor

    @property
    def resting(self) -> Tensor:
        """Which lanes make no further step, shape `lanes`."""
        return (self.residual <= self.limit) | self.lost


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

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        return run(self, problem, z0)


def run(solver: Iterative, problem: Problem, z0: Tensor, watch: Watch | None = None) -> Solution:
    """Step until every lane's residual is at most `solver.tol`, or `solver.max_steps` times.

    A lane whose residual is NaN makes one more step, which carries the NaN into z and its derivatives, and stops.

    What is known at the start may be untrue where a lane stops: the curvature, and the rounding of the gradient below
    which no residual can be asked for. Both are looked at again there, and a lane that was stopped too early goes on.
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
    return Solution(state.trial, None, None, solver.max_steps)


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
        return Running(begun, none, none, none > 0, none, inf)
    limit, unit = _aim(solver, problem, begun.z, begun.slope)
    nowhere, unknown = torch.full_like(begun.z, torch.nan), torch.full_like(limit, torch.inf)
    return Running(
        solver.aimed(begun, limit, unit), limit, unit, torch.zeros_like(limit, dtype=torch.bool), nowhere, unknown
    )


def _aim(solver: Iterative, problem: Problem, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each lane stops that starts at z with this slope.

    Returns:
        The residual to reach, shape `lanes`, and the curvature in whose units it is measured, shape `(*lanes, 1)`.
    """
    unit = _unit(solver, problem, z, slope)
    return torch.maximum(reachable(slope), _asked(solver, unit)), unit


def _unit(solver: Iterative, problem: Problem, z: Tensor, slope: Tensor) -> Tensor:
    """Return what residuals are measured in, shape `(*lanes, 1)`."""
    if solver.tol is None or not solver.relative:
        return torch.ones_like(slope[..., :1])
    # A unit step of an objective in a large unit leads far away, where a projection may not be found.
    return curvature(problem, z.detach(), slope.detach())


def _asked(solver: Iterative, unit: Tensor) -> Tensor:
    """Return the residual that the solver is asked for, shape `lanes`."""
    limit: Tensor = (solver.tol or 0.0) * unit.squeeze(-1).clamp(max=1.0)
    return limit


def _confirmed(solver: Iterative, problem: Problem, state: Running) -> Running:
    """Return the state with the residual to reach from where it is: as asked for, or the gradient's rounding there."""
    at = state.state
    unit = _unit(solver, problem, at.z, at.slope)
    limit = _asked(solver, unit)
    state = state._replace(unit=unit)
    residual = _residual(solver, problem, state)
    if not all_true(residual <= limit):
        noise = rounding(problem, at.z.detach(), at.slope.detach(), residual.detach())
        limit = torch.where(noise > limit, noise, limit)  # a NaN is no limit
    return state._replace(
        state=solver.aimed(at, limit, unit), limit=limit, place=torch.full_like(state.place, torch.nan)
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
        return Solution(state.state.trial, None, None, steps)
    residual = _residual(solver, problem, state)
    if not all_true(residual <= state.limit) or steps == solver.max_steps:
        state = _confirmed(solver, problem, state)
        residual = _residual(solver, problem, state)
    return Solution(state.state.z, residual, state.limit, steps, state.state.slope.detach())


def _looked(solver: Iterative, problem: Problem, state: Running, index: int) -> tuple[Running, Tensor | None, Tensor]:
    """Return what `_look` does, after a look at the limits when all lanes would stop."""
    state = _measured(solver, problem, state)
    done, lost = _look(solver, state)
    due = index % _PERIOD == _PERIOD - 1  # a lane that has come down to rounding would go on to the last step
    if done is not None and (due or (index % stride(state.limit) == 0 and all_true(done))):
        state = _measured(solver, problem, _confirmed(solver, problem, state))
        done, lost = _look(solver, state)
    return state, done, lost


def _measured(solver: Iterative, problem: Problem, state: Running) -> Running:
    """Return the state with the residual of its point. A solver may rest on a point while it looks at others."""
    if solver.tol is None or surely(state.state.z == state.place):
        return state
    return state._replace(place=state.state.z.detach(), residual=_residual(solver, problem, state))


def _look(solver: Iterative, state: Running) -> tuple[Tensor | None, Tensor]:
    """Return which lanes stop here, or None where nothing is measured, and which are lost after one more step."""
    if solver.tol is None:
        return None, state.lost
    return state.resting, state.residual.isnan()


def _residual(solver: Iterative, problem: Problem, state: Running) -> Tensor:
    z, slope = state.state.z, state.state.slope
    return problem.residual(z, slope, state.unit) if solver.relative else problem.residual(z, slope)


def _step(
    solver: Iterative, problem: Problem, before: Running, done: Tensor | None, lost: Tensor, *, last: bool
) -> Running:
    moved = solver.move(problem, before.state)
    # Nothing looks at the last trial when nothing is measured.
    after = moved if last and solver.tol is None else solver.look(problem, moved)
    # A problem of its own has stopped the loop before it could be done here.
    if done is not None and (done.ndim or done.device.type != "cpu" or transforms_active()):
        after = tree.map(lambda old, new: in_lanes(done, old, new), before.state, after)
    return before._replace(state=after, lost=lost)
