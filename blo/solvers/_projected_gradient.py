"""Projected gradient descent, all lanes at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import transforms_active
from blo.solvers import _direction
from blo.solvers._base import Problem, Solution, Solver


@dataclass(frozen=True)
class ProjectedGradient(Solver):
    """Projected gradient descent that stops on the projected-gradient residual.

    Each lane stops on its own residual `|z - project(z - gradient)|` and is frozen from then on.

    Args:
        step: step size. None finds one for each lane: it halves whenever the curvature measured along a step exceeds
            `1/step`, takes that step back, and grows slowly otherwise (raw gradient direction, no momentum).
        max_steps: most gradient evaluations.
        tol: residual at which a lane stops. None makes exactly `max_steps` steps, measures nothing and never waits
            for the device.
        direction: `"gradient"`, `"sign"` or `"normalized"`.
        momentum: heavy-ball weight in [0, 1).

    Raises:
        ValueError: for values outside these ranges.
    """

    step: float | None = None
    max_steps: int = 1000
    tol: float | None = 1e-6
    direction: _direction.Direction = "gradient"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _direction.check(self.direction)
        if self.step is not None and not self.step > 0:
            raise ValueError(f"`step` must be positive, but is {self.step}.")
        if self.max_steps < 1:
            raise ValueError(f"`max_steps` must be at least 1, but is {self.max_steps}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` must lie in [0, 1), but is {self.momentum}.")
        if self.tol is not None and not self.tol > 0:
            raise ValueError(f"`tol` must be positive, or None for a fixed number of steps, but is {self.tol}.")
        if self.step is None and (self.direction != "gradient" or self.momentum):
            raise ValueError("step=None finds a step for the raw gradient without momentum; give `step` as a number.")

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        trial, z, slope, velocity = z0, z0, None, None
        step = z0.new_full((*z0.shape[:-1], 1), 1.0 if self.step is None else self.step)
        residual, done, steps = None, None, 0
        for steps in range(self.max_steps + (self.tol is not None)):
            at_trial = problem.gradient(trial)
            if self.step is None and slope is not None:
                step, accepted = _adapt(step, trial - z, at_trial - slope)
                z, slope = torch.where(accepted, trial, z), torch.where(accepted, at_trial, slope)
            else:
                z, slope = trial, at_trial
            if self.tol is not None:
                residual = problem.residual(z, slope)
                done = residual <= self.tol
                if steps == self.max_steps or _all(done):
                    break
            move = _direction.scaled(slope, self.direction)
            if self.momentum:
                velocity = move if velocity is None else self.momentum * velocity + move
                move = velocity
            moved = problem.prox(z - step * move, step)
            trial = moved if done is None else torch.where(done.unsqueeze(-1), z, moved)
        else:
            z, steps = trial, self.max_steps
        return Solution(z, residual, self.tol, steps)


def _adapt(step: Tensor, moved: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next step of each lane, and whether the last one is kept; shapes `(*lanes, 1)`."""
    moved, turned = moved.detach(), turned.detach()
    length = (moved * moved).sum(-1, keepdim=True)
    # Gradient differences stay accurate near the solution, where differences of values drown in rounding.
    accepted = step * (turned * moved).sum(-1, keepdim=True) <= length
    return torch.where(accepted, 1.05 * step, 0.5 * step), accepted


def _all(done: Tensor) -> bool:
    """Tell whether every lane is done; inside transforms, where no tensor may decide, all steps are made."""
    return not transforms_active() and bool(done.all())
