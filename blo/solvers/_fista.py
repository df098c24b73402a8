"""Accelerated proximal gradient descent, for all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import all_true_on_cpu
from blo._settings import require_budget, require_positive
from blo._vectors import dot, norm
from blo.solvers._base import Problem
from blo.solvers._iterative import Iterative, valued_gradient
from blo.solvers._probe import Probe

#: Growth factor of the step size after a step has been too long. Without growth the step size would stay at the inverse
#: of the largest curvature of the whole path.
_GROWTH = 1.003


@dataclass(frozen=True)
class FISTA(Iterative):
    """Nesterov's accelerated proximal gradient method, restarted when its momentum points uphill.

    The method takes any constraint and any penalty. It evaluates gradients at extrapolated points, which need not lie
    in the set. The result is always a proximal point, so it is feasible and sparse, and its residual is measured at
    this point. If the problem is ill-conditioned, the number of steps is about the square root of that of
    `ProjectedGradient`.

    Source: Beck and Teboulle (SIAM J. Imaging Sci. 2009); O'Donoghue and Candes (Found. Comput. Math. 2015), section
    3.2, the gradient scheme.

    Args:
        step: step size in units of z squared over objective, at most one over the largest curvature. None finds one for
            each lane: the step size doubles until the curvature along a step exceeds `1/step`. Whenever it does, or the
            objective is not finite, the step is rejected and its size halved.
        max_steps: maximum number of gradient evaluations after the one at the start.
        tol: a lane stops at this residual `|z - prox(z - gradient)|`, in the unit of the gradient, or at a smaller one
            where the curvature is small. None makes exactly `max_steps` steps, measures no residual and never waits for
            the device.
        relative: `tol` is in units of the curvature if that is below 1, so that scaling the objective by a small factor
            does not stop the solve earlier. This takes one more gradient.

    Raises:
        ValueError: for values outside these ranges.
        StructureError: for a `step` that requires grad.
    """

    step: float | None = None
    max_steps: int = 1000
    tol: float | None = 1e-8
    relative: bool = False

    def __post_init__(self) -> None:
        require_budget(self.max_steps, self.tol)
        if self.step is not None:
            require_positive(self.step, "step")

    def start(self, problem: Problem, z0: Tensor) -> _State:
        slope = problem.gradient(z0)
        one = torch.ones_like(z0[..., :1])
        step = one * (1.0 if self.step is None else self.step)
        none, nowhere = torch.zeros_like(one), (torch.zeros_like(z0[..., 0]), one)
        probe = Probe.at(problem, z0, slope) if self.step is None and problem.followed else ()
        step = probe.limited(step) if probe else step
        return _State(
            z0, slope, z0, z0, slope, z0, z0, step, one, one, none, none.bool(), one.bool(), nowhere, none.bool(), probe
        )

    def aimed(self, state: _State, limit: Tensor, unit: Tensor) -> _State:
        return state._replace(target=(limit, unit))

    def move(self, problem: Problem, state: _State) -> _State:
        near = problem.prox(state.base - state.step * state.force, state.step)
        onward = near - state.last
        # base - near is the step times the generalised gradient: restart when it points against the last move.
        uphill = ((state.base - near) * onward).detach().sum(-1, keepdim=True) > 0
        age = torch.where(uphill, 1.0, state.age)
        older = 0.5 * (1 + (1 + 4 * age * age).sqrt())
        # The gradient is normally evaluated at the extrapolated point. It is evaluated at the proximal point itself
        # where that may become the result: in the last step, and where its residual may meet the tolerance.
        settle = state.made >= self.max_steps - 1
        if self.tol is not None:
            settle = settle | self._arrived(problem, state, near)
        pure = settle | (age <= 1)
        trial = torch.where(pure, near, near + (age - 1) / older * onward)
        return state._replace(trial=trial, near=near, older=older, pure=pure)

    def look(self, problem: Problem, state: _State) -> _State:
        if self.step is None:
            looked = valued_gradient(problem, state.trial)
            step, accepted, found = _adapt(state, looked)
        else:
            looked = problem.gradient(state.trial)
            step, accepted, found = state.step, torch.ones_like(state.pure), state.found
        base, force = torch.where(accepted, state.trial, state.base), torch.where(accepted, looked, state.force)
        probe = state.probe.stepped(problem, base, force) if state.probe else ()
        # z becomes the trial only if that is a proximal point: an extrapolated point may be infeasible.
        checked = state.pure & (accepted | self._better_than_none(problem, state, looked))
        return _State(
            z=torch.where(checked, state.trial, state.z),
            slope=torch.where(checked, looked, state.slope),
            trial=state.trial,
            base=base,
            force=force,
            near=state.near,
            last=torch.where(accepted, state.near, state.last),
            step=probe.limited(step) if probe else step,
            # If a trial fails again after its step was halved, the momentum is the cause: restart it.
            age=torch.where(accepted, state.older, torch.where(state.failed, 1.0, state.age)),
            older=state.older,
            made=state.made + 1,
            found=found,
            pure=state.pure,
            target=state.target,
            failed=~accepted,
            probe=probe,
        )

    def _arrived(self, problem: Problem, state: _State, near: Tensor) -> Tensor:
        """Return the lanes in which the residual at the base is small enough to stop, shape `(*lanes, 1)`."""
        limit, unit = state.target
        # `|z - prox(z - t slope)|` grows with t, and divided by t it falls (Beck, First-order methods in optimization,
        # 2017, theorem 10.9). So the step just made gives a lower bound of the residual without another projection.
        moved = norm((state.base - near).detach())
        least = moved * torch.minimum(1 / state.step.detach(), unit)
        if all_true_on_cpu(least.squeeze(-1) > 2 * limit):
            return torch.zeros_like(state.pure)
        residual = problem.residual(state.base, state.force, unit if self.relative else None)
        return (residual <= limit).unsqueeze(-1)

    def _better_than_none(self, problem: Problem, state: _State, force: Tensor) -> Tensor:
        """Return the lanes in which the last trial, although rejected, has a smaller residual than z, `(*lanes, 1)`.

        After the last step no other trial follows, so the better of the two points becomes the result.
        """
        ended = state.made >= self.max_steps - 1
        if self.tol is None or all_true_on_cpu(~ended):  # without a tolerance the loop does not evaluate the last trial
            return torch.zeros_like(ended)
        better = problem.residual(state.trial, force) < problem.residual(state.z, state.slope)
        return ended & better.unsqueeze(-1)


class _State(NamedTuple):
    """The state of FISTA. z is the last proximal point at which the gradient `slope` was evaluated.

    Attributes:
        base: the point from which the next step is made, with its gradient `force`.
        near: the proximal point of the step from `base`, shape `(*lanes, n)`.
        last: the previous proximal point.
        step: step size, shape `(*lanes, 1)` like the fields below.
        age: the parameter t of Nesterov's sequence, and its next value `older`.
        made: the number of gradients since the start.
        found: whether a step has been too long.
        pure: whether the trial is a proximal point, without extrapolation.
        target: the residual at which to stop and its unit.
        failed: whether the last trial was rejected.
        probe: an estimate of the largest curvature, which limits steps; empty if no steps will be differentiated.
    """

    z: Tensor
    slope: Tensor
    trial: Tensor
    base: Tensor
    force: Tensor
    near: Tensor
    last: Tensor
    step: Tensor
    age: Tensor
    older: Tensor
    made: Tensor
    found: Tensor
    pure: Tensor
    target: tuple[Tensor, Tensor]
    failed: Tensor
    probe: Probe | tuple[()]

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z), force=gradient(self.base))


def _adapt(state: _State, force: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the next step size of each lane, whether the last step is accepted, and whether one was ever too long."""
    moved, turned = (state.trial - state.base).detach(), (force - state.force).detach()
    length = dot(moved, moved)
    bend = dot(turned, moved)
    # A comparison with NaN is false, so a trial with a gradient that is not finite is rejected.
    accepted = state.step * bend <= length
    found = state.found | ~accepted
    # One branch must be a tensor: `where` with two Python numbers would return the default dtype.
    grown = torch.where(found, _GROWTH, 1 + (2 * state.step * bend <= length).to(bend.dtype))
    return state.step * torch.where(accepted, grown, 0.5), accepted, found
