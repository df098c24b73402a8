"""Accelerated projected, or proximal, gradient descent, all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import surely
from blo._settings import require_budget, require_positive
from blo.solvers._base import Problem
from blo.solvers._iterative import Iterative, valued_gradient
from blo.solvers._probe import Probe

#: Growth of the step once it has been too long, lest it stay at the largest curvature ever met.
_GROWTH = 1.003


@dataclass(frozen=True)
class FISTA(Iterative):
    """Nesterov's accelerated proximal gradient method, restarted when its momentum points uphill.

    It takes any constraint and any penalty. Gradients are taken at extrapolated points, which need not be in the set;
    what is returned is always a proximal point, feasible and sparse, and its residual is measured there. It takes about
    the square root of the steps of `ProjectedGradient` where the problem is ill-conditioned.

    Source: Beck and Teboulle (SIAM J. Imaging Sci. 2009); O'Donoghue and Candes (Found. Comput. Math. 2015), section
    3.2, the gradient scheme.

    Args:
        step: step size, at most one over the largest curvature. None finds one for each lane: it doubles until the
            curvature measured along a step exceeds `1/step`, and halves, taking that step back, whenever it does or the
            objective has no value.
        max_steps: most gradient evaluations after the one at the start.
        tol: residual `|z - prox(z - gradient)|` at which a lane stops; a smaller one where the curvature is small. None
            makes exactly `max_steps` steps, measures nothing and never waits for the device.
        relative: `tol` is in units of the curvature where that is below 1, so that an objective in a small unit is
            solved as well; it takes one more gradient.

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
        uphill = ((state.base - near) * onward).detach().sum(-1, keepdim=True) > 0
        age = torch.where(uphill, 1.0, state.age)
        older = 0.5 * (1 + (1 + 4 * age * age).sqrt())
        # The point that may be returned is looked at itself: at the end, and where a look could find it good enough.
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
            # Where halving the step did not help it was the momentum that led astray.
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
        """Tell in which lanes the residual at the base is small enough to stop, shape `(*lanes, 1)`."""
        limit, unit = state.target
        # `|z - prox(z - t slope)|` grows with t and falls when divided by t (Beck, First-order methods in
        # optimization, 2017, theorem 10.9), so the step that was made says how large the residual is at least.
        moved = torch.linalg.vector_norm((state.base - near).detach(), dim=-1, keepdim=True)
        least = moved * torch.minimum(1 / state.step.detach(), unit)
        if surely(least.squeeze(-1) > 2 * limit):
            return torch.zeros_like(state.pure)
        residual = problem.residual(state.base, state.force, unit if self.relative else None)
        return (residual <= limit).unsqueeze(-1)

    def _better_than_none(self, problem: Problem, state: _State, force: Tensor) -> Tensor:
        """Tell where the last trial, though to be taken back, is better than what was looked at before it.

        At the end there is no other trial, so that one has to do. Shape `(*lanes, 1)`.
        """
        ended = state.made >= self.max_steps - 1
        if self.tol is None or surely(~ended):  # the loop does not look at the last trial when nothing is measured
            return torch.zeros_like(ended)
        better = problem.residual(state.trial, force) < problem.residual(state.z, state.slope)
        return ended & better.unsqueeze(-1)


class _State(NamedTuple):
    """Beside the last proximal point that was looked at, z, its slope, and the trial:

    Attributes:
        base: the point from which the next step is made, with its gradient `force`.
        near: the proximal point next to `base`, shape `(*lanes, n)`.
        last: the one before it.
        step: step size, shape `(*lanes, 1)` like all that follows.
        age: the weight t of the momentum, and its next value `older`.
        made: gradients since the start.
        found: a step size that was too long has been met.
        pure: the trial is a proximal point.
        target: the residual to reach and its unit.
        failed: the last trial was taken back.
        probe: how long steps may be; empty where nobody differentiates through them.
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
    """Return the next step of each lane, whether the last one is kept, and whether a step was ever too long."""
    moved, turned = (state.trial - state.base).detach(), (force - state.force).detach()
    length = (moved * moved).sum(-1, keepdim=True)
    bend = (turned * moved).sum(-1, keepdim=True)
    accepted = state.step * bend <= length
    found = state.found | ~accepted
    # Never two numbers: where would give them the default precision.
    grown = torch.where(found, _GROWTH, 1 + (2 * state.step * bend <= length).to(bend.dtype))
    return state.step * torch.where(accepted, grown, 0.5), accepted, found
