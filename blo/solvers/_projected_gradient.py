"""Projected, or proximal, gradient descent, all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._settings import require_budget, require_positive
from blo.solvers import _direction
from blo.solvers._base import Problem
from blo.solvers._iterative import Iterative, valued_gradient
from blo.solvers._probe import Probe


@dataclass(frozen=True)
class ProjectedGradient(Iterative):
    """Projected gradient descent that stops on the projected-gradient residual.

    Each lane stops on its own residual `|z - project(z - gradient)|` and is frozen from then on.

    Args:
        step: step size. None finds one for each lane: it halves whenever the curvature measured along a step exceeds
            `1/step` or the objective has no value, takes that step back, and grows slowly otherwise (raw gradient
            direction, no momentum).
        max_steps: most gradient evaluations after the one at the start.
        tol: residual at which a lane stops; a smaller one where the curvature is small. None makes exactly `max_steps`
            steps, measures nothing and never waits for the device.
        direction: `"gradient"`, or that of steepest descent in the max-norm `"sign"`, the 2-norm `"normalized"` or the
            1-norm `"coordinate"`: along the largest coordinate that no bound stops.
        momentum: heavy-ball weight in [0, 1).

    Raises:
        ValueError: for values outside these ranges.
        StructureError: for a `step` that requires grad.
    """

    step: float | None = None
    max_steps: int = 1000
    tol: float | None = 1e-8
    direction: _direction.Direction = "gradient"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _direction.check(self.direction)
        require_budget(self.max_steps, self.tol)
        if self.step is not None:
            require_positive(self.step, "step")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` must lie in [0, 1), but is {self.momentum}.")
        if self.step is None and (self.direction != "gradient" or self.momentum):
            raise ValueError("step=None finds a step for the raw gradient without momentum; give `step` as a number.")

    def start(self, problem: Problem, z0: Tensor) -> _State:
        step = z0.new_full((*z0.shape[:-1], 1), 1.0 if self.step is None else self.step)
        slope = problem.gradient(z0)
        velocity = torch.zeros_like(z0) if self.momentum else z0  # of no use without momentum, and then at no cost
        if self.step is not None or not problem.followed:
            return _State(z0, slope, z0, step, velocity, ())
        probe = Probe.at(problem, z0, slope)
        return _State(z0, slope, z0, probe.limited(step), velocity, probe)

    def move(self, problem: Problem, state: _State) -> _State:
        move = _direction.scaled(problem, state.z, state.slope, self.direction)
        velocity = torch.add(move, state.velocity, alpha=self.momentum) if self.momentum else state.velocity
        along = velocity if self.momentum else move
        # One operation for a step that is a number: `Unrolled` differentiates through every one of them.
        trial = state.z - state.step * along if self.step is None else torch.sub(state.z, along, alpha=self.step)
        trial = problem.prox(trial, state.step)
        return _State(state.z, state.slope, trial, state.step, velocity, state.probe)

    def look(self, problem: Problem, state: _State) -> _State:
        if self.step is not None:
            z = state.trial
            return _State(z, problem.gradient(z), z, state.step, state.velocity, ())
        slope = valued_gradient(problem, state.trial)
        step, accepted = _adapt(state.step, state.trial - state.z, slope - state.slope)
        z, slope = torch.where(accepted, state.trial, state.z), torch.where(accepted, slope, state.slope)
        if not state.probe:
            return state._replace(z=z, slope=slope, step=step)
        probe = state.probe.stepped(problem, z, slope)
        return state._replace(z=z, slope=slope, step=probe.limited(step), probe=probe)


class _State(NamedTuple):
    z: Tensor
    slope: Tensor
    trial: Tensor
    step: Tensor
    velocity: Tensor
    probe: Probe | tuple[()]

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))


def _adapt(step: Tensor, moved: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next step of each lane, and whether the last one is kept; shapes `(*lanes, 1)`."""
    moved, turned = moved.detach(), turned.detach()
    length = (moved * moved).sum(-1, keepdim=True)
    # Gradient differences stay accurate near the solution, where differences of values drown in rounding.
    accepted = step * (turned * moved).sum(-1, keepdim=True) <= length
    return torch.where(accepted, 1.05 * step, 0.5 * step), accepted
