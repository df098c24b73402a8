"""The one loop of all iterative lower solvers."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import all_true, transforms_active
from blo.solvers._base import Problem, Solution, Solver

#: Steps between two looks at the convergence flags where a look stalls the device's queue.
_STRIDE = 8

#: Units of rounding of the gradient at the start below which no residual is asked for.
_ROUNDING = 16


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
    """What the loop carries.

    Attributes:
        state: the solver's.
        limit: the residual at which each lane stops, shape `lanes`.
        unit: what the residual is measured in, shape `(*lanes, 1)`.
        lost: lanes whose last step was from a residual of NaN, shape `lanes`.
    """

    state: Any
    limit: Tensor
    unit: Tensor
    lost: Tensor


#: Called with the number of steps made so far and the state, before each further step.
Watch: TypeAlias = Callable[[int, Any], None]


class Iterative(Solver, abc.ABC):
    """A solver that repeats one step. A step is a `move` to a trial point and a `look` at it.

    Subclasses never loop and never stop: `run` does, for every lane on its own residual.
    """

    max_steps: int
    tol: float | None
    #: `tol` is in units of the curvature at the start, so that solutions do not depend on the objective's unit.
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

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        return run(self, problem, z0)


def run(solver: Iterative, problem: Problem, z0: Tensor, watch: Watch | None = None) -> Solution:
    """Step until every lane's residual is at most `solver.tol`, or `solver.max_steps` times.

    A lane whose residual is NaN makes one more step, which carries the NaN into z and its derivatives, and stops.

    A tolerance below the rounding of gradients as large as the first is out of reach: a lane stops there too. Whether
    it has converged is judged by the tolerance, or by the rounding of the gradient where it stopped.
    """
    begun = solver.start(problem, z0)
    limit, unit = begun.target if hasattr(begun, "target") else aim(solver, problem, begun.z, begun.slope)
    state = Running(begun, limit, unit, torch.zeros_like(limit, dtype=torch.bool))
    steps = 0
    stride = 1 if z0.device.type == "cpu" else _STRIDE
    while steps < solver.max_steps:
        done, lost = _look(solver, problem, state)
        if done is not None and steps % stride == 0 and all_true(done):
            break
        if watch is not None:
            watch(steps, state)
        state = _step(solver, problem, state, done, lost, last=steps == solver.max_steps - 1)
        steps += 1
    return finish(solver, problem, state, steps)


def valued_gradient(problem: Problem, z: Tensor) -> Tensor:
    """Return the gradient where the objective has a value, NaN where it has none: left of zero, `log` has a slope."""
    if not problem.symmetric:
        return problem.gradient(z)
    value, slope = problem.evaluate(z)
    return torch.where(torch.isfinite(value).unsqueeze(-1), slope, torch.nan)


def aim(solver: Iterative, problem: Problem, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each lane stops that starts at z with this slope.

    Returns:
        The residual to reach, shape `lanes`, and the curvature in whose units it is measured, shape `(*lanes, 1)`.
    """
    if solver.tol is None or not solver.relative:
        return reachable(solver.tol, slope), torch.ones_like(slope[..., :1])
    z, slope = z.detach(), slope.detach()
    bend = _curvature(problem, z, slope)
    # Gradients are rounded as much as the terms of which they are the sum: H z is one of them.
    return torch.maximum(reachable(None, torch.cat([slope, bend * z], -1)), solver.tol * bend.squeeze(-1)), bend


def reachable(tol: float | None, slope: Tensor) -> Tensor:
    """Return the tolerance, or the rounding of gradients as large as the slope where that is more, shape `lanes`."""
    rounding = _ROUNDING * torch.finfo(slope.dtype).eps * torch.linalg.vector_norm(slope.detach(), dim=-1)
    limit: Tensor = rounding.clamp(min=tol or 0.0)
    return limit


def _curvature(problem: Problem, z: Tensor, slope: Tensor) -> Tensor:
    """Return `|H d|` for one unit vector d that no problem is likely to be aligned with, shape `(*lanes, 1)`.

    It is measured by a difference of gradients; 1 where these do not tell.
    """
    direction = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device).square().cos()
    step = torch.finfo(z.dtype).eps ** 0.5 * torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp(min=1.0)
    ahead = problem.gradient(z + step * direction / torch.linalg.vector_norm(direction)).detach()
    bend: Tensor = torch.linalg.vector_norm((ahead - slope) / step, dim=-1, keepdim=True)
    return torch.where(torch.isfinite(bend) & (bend > 0), bend, 1.0)


def advance(solver: Iterative, problem: Problem, state: Running, first: int, steps: int) -> Running:
    """Make the steps numbered `first` to `first + steps - 1` of `run` again, from the state before them."""
    for index in range(first, first + steps):
        done, lost = _look(solver, problem, state)
        state = _step(solver, problem, state, done, lost, last=index == solver.max_steps - 1)
    return state


def finish(solver: Iterative, problem: Problem, state: Running, steps: int) -> Solution:
    """Return the solution that a state stands for."""
    at = state.state
    if solver.tol is None:
        return Solution(at.trial, None, None, steps)
    residual = _residual(solver, problem, state)
    asked = solver.tol * state.unit.squeeze(-1)
    if not all_true(residual <= asked):
        # It was asked for more than the gradient can tell. How much that is, changes of z by its rounding show.
        eps = torch.finfo(at.z.dtype).eps
        moved = problem.gradient(at.z.detach() * (1 + 2 * eps)).detach() - at.slope.detach()
        noise = _ROUNDING * torch.linalg.vector_norm(moved, dim=-1)
        asked = torch.where(noise > asked, torch.minimum(noise, torch.maximum(asked, state.limit)), asked)
    return Solution(at.z, residual, asked, steps)


def _look(solver: Iterative, problem: Problem, state: Running) -> tuple[Tensor | None, Tensor]:
    """Return which lanes stop here, or None where nothing is measured, and which are lost after one more step."""
    if solver.tol is None:
        return None, state.lost
    residual = _residual(solver, problem, state)
    return (residual <= state.limit) | state.lost, residual.isnan()


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
        after = tree.map(lambda old, new: _where(done, old, new), before.state, after)
    return Running(after, before.limit, before.unit, lost)


def _where(done: Tensor, old: Tensor, new: Tensor) -> Tensor:
    if new.shape[: done.ndim] != done.shape:
        return new
    return torch.where(done.reshape(done.shape + (1,) * (new.ndim - done.ndim)), old, new)
