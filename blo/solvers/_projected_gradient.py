"""Projected or proximal gradient descent, for all lanes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._settings import require_budget, require_positive
from blo._types import Tree
from blo._vectors import dot
from blo.solvers import _direction
from blo.solvers._base import Problem
from blo.solvers._carried import continued, require_carry
from blo.solvers._iterative import Iterative, valued_gradient
from blo.solvers._line import bounds
from blo.solvers._of_theta import functions_of_theta, rate, varies
from blo.solvers._probe import Probe
from blo.solvers._transform import require_transform, transformed


@dataclass(frozen=True)
class ProjectedGradient(Iterative):
    """Projected gradient descent that stops on the projected-gradient residual.

    Each lane stops on its own residual `|z - project(z - gradient)|` and does not change afterwards.

    Args:
        step: step size, a number or a function of theta; in units of z squared over objective for the direction
            `"gradient"`, of z for the others. None finds one for each lane: whenever the curvature along a step exceeds
            `1/step`, or the objective is not finite, the step is rejected and its size halved; otherwise the step size
            grows slowly. None needs the direction `"gradient"`, without momentum.
        max_steps: maximum number of gradient evaluations after the one at the start.
        tol: a lane stops at this residual, in the unit of the gradient, or at a smaller one where the curvature is
            small. None makes exactly `max_steps` steps, measures no residual and never waits for the device.
        direction: `"gradient"`, or the direction of steepest descent in the max-norm (`"sign"`), the 2-norm
            (`"normalized"`) or the 1-norm (`"coordinate"`: the largest coordinate that no bound blocks).
        momentum: heavy-ball weight in [0, 1) (Polyak, USSR Comput. Math. Math. Phys. 1964), a number or a function of
            theta. The velocity is the direction plus `momentum` times the last velocity, as in `torch.optim.SGD`; the
            point moves by `step` times the velocity and is projected.
        transform: a function that is applied to each gradient before the step, for example clipping. It takes a tree
            like z (with the batch axis first) and returns another, without writing to its argument. `Unrolled`
            differentiates it. Residuals are those of the gradient itself.
        carry: the `state` of `value_and_hypergrad` passes the momentum and the number of the next batch to the next
            call. This needs a fixed number of steps (tol=None) and a given `step`.

    A function of theta returns a scalar; one value per step, as `max_steps` scalars or a tensor of shape
    `(max_steps,)`; or one value per coordinate, as a tree like z. `Unrolled` differentiates these values with the steps
    (Maclaurin, Duvenaud and Adams, ICML 2015). Strategies that only need the solution, like `Implicit`, treat them as
    constants, because the solution does not depend on the path to it. A step size per coordinate needs a set that
    bounds each coordinate by itself, because the Euclidean projection onto any other set assumes one step size.

    Raises:
        ValueError: for values outside these ranges. The solve raises it for values of functions.
        StructureError: for a `step` that requires grad. The solve raises it if a function of theta returns anything
            else, or for a step size per coordinate with a penalty or another set.
    """

    may_vary = ("step", "momentum")
    takes_batches = True

    step: float | Callable[[Tree], Tree] | None = None
    max_steps: int = 1000
    tol: float | None = 1e-8
    direction: _direction.Direction = "gradient"
    momentum: float | Callable[[Tree], Tree] = 0.0
    transform: Callable[[Tree], Tree] | None = None
    carry: bool = False

    def __post_init__(self) -> None:
        _direction.check(self.direction)
        require_budget(self.max_steps, self.tol)
        if self.step is not None and not varies(self.step):
            require_positive(self.step, "step")
        if not varies(self.momentum) and not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` must lie in [0, 1), but is {self.momentum}.")
        require_transform(self.transform)
        if self.step is None and (self.direction != "gradient" or self.momentum or self.transform is not None):
            raise ValueError(
                "step=None needs direction='gradient', no momentum and no transform; otherwise give `step` as a number."
            )
        require_carry(self.carry, self.tol is None and self.step is not None)

    def start(self, problem: Problem, z0: Tensor) -> _State:
        counted = self.carry or problem.stepwise or functions_of_theta(self)
        size = 1.0 if self.step is None or varies(self.step) else self.step
        step = z0.new_full((*z0.shape[:-1], 1), size)
        velocity = torch.zeros_like(z0) if self.momentum else z0  # unused without momentum: z0 takes no memory
        age: Tensor | tuple[()] = torch.zeros((), dtype=torch.int64, device="cpu") if counted else ()
        if self.carry and isinstance(age, Tensor):
            age, velocity = continued(problem, [age, velocity])
        slope = problem.at_step(age).gradient(z0)
        if varies(self.step) and rate(problem, self.step, "step", self.max_steps, age).shape[-1] > 1:
            bounds(problem.term, z0, "ProjectedGradient with a `step` for each coordinate")  # raises for other sets
        if self.step is not None or not problem.followed:
            return _State(z0, slope, z0, step, velocity, (), age)
        # Step sizes found along the solver's own steps may be too large for the derivatives of those steps.
        probe = Probe.at(problem, z0, slope)
        return _State(z0, slope, z0, probe.limited(step), velocity, probe, age)

    def carried(self, state: _State) -> Sequence[Tensor]:
        return (state.age, state.velocity) if self.carry and isinstance(state.age, Tensor) else ()

    def move(self, problem: Problem, state: _State) -> _State:
        slope = transformed(problem, self.transform, state.slope)
        along = _direction.scaled(problem, state.z, slope, self.direction)
        velocity = state.velocity
        if varies(self.momentum):
            momentum = rate(problem, self.momentum, "momentum", self.max_steps, state.age)
            along = velocity = along + momentum * velocity
        elif self.momentum:
            along = velocity = torch.add(along, velocity, alpha=self.momentum)
        step = state.step
        if varies(self.step):
            step = rate(problem, self.step, "step", self.max_steps, state.age).expand(*state.z.shape[:-1], -1)
        if self.step is None or varies(self.step):
            trial = state.z - step * along
        else:  # one operation instead of two for a number: `Unrolled` records and differentiates each operation
            trial = torch.sub(state.z, along, alpha=self.step)
        trial = problem.prox(trial, step)
        age = state.age + 1 if isinstance(state.age, Tensor) else state.age
        return state._replace(trial=trial, velocity=velocity, age=age)

    def look(self, problem: Problem, state: _State) -> _State:
        if self.step is not None:
            return state._replace(z=state.trial, slope=problem.at_step(state.age).gradient(state.trial))
        slope = valued_gradient(problem, state.trial)
        step, accepted = _adapt(state.step, state.trial - state.z, slope - state.slope)
        # `where`, not a branch: each lane accepts or rejects its own trial.
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
    age: Tensor | tuple[()]

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))


def _adapt(step: Tensor, moved: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next step size of each lane, and whether its last step is accepted; shapes `(*lanes, 1)`."""
    # The step size is piecewise constant in theta: what decides on its changes needs no derivative.
    moved, turned = moved.detach(), turned.detach()
    length = dot(moved, moved)
    # Differences of gradients stay accurate near the solution, where rounding dominates differences of values.
    accepted = step * dot(turned, moved) <= length
    # Growth is slow, because each rejected step costs a gradient, but the curvature may be smaller further on.
    return torch.where(accepted, 1.05 * step, 0.5 * step), accepted
