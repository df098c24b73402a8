"""The state of the loop of iterative solvers, and the stopping criterion of each lane.

The criterion is set at the start of a solve, and revised at the point where the lane stops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from blo._autodiff import all_true, all_true_on_cpu
from blo._curvature import Place, curvature_along_residual
from blo._vectors import length
from blo.sets import Free
from blo.solvers._base import Problem
from blo.solvers._stopping import (
    ROUNDING,
    curvature,
    hidden,
    repeats,
    required,
    required_in_units,
    resolution,
    rounding,
)

#: A solve whose residual no longer decreases may stop if the residual is below this many units of rounding of the
#: largest gradient.
_FLOOR = 64
#: A solve whose residual no longer decreases is tested for a random objective if the residual is below this multiple of
#: that floor. Above it rounding or noise is an unlikely cause, and the test costs gradients.
_NEAR = 100


class Aims(Protocol):
    """The part of `Iterative` that the stopping criterion uses."""

    @property
    def tol(self) -> float | None: ...
    @property
    def relative(self) -> bool: ...
    def aimed(self, state: Any, limit: Tensor, unit: Tensor) -> Any:
        """Return the state with the residual at which to stop, shape `lanes`, and its unit, shape `(*lanes, 1)`."""


class State(Protocol):
    """The state of a solver: a named tuple of tensors, or tuples of tensors, with leading lane axes.

    Tensors without lane axes are shared by all lanes, so they keep changing after some lanes have stopped.

    Attributes:
        z: the iterate, shape `(*lanes, n)`.
        slope: the gradient of the objective at z.
        trial: the point to be evaluated next; the result of a solve without a tolerance.
    """

    @property
    def z(self) -> Tensor: ...
    @property
    def slope(self) -> Tensor: ...
    @property
    def trial(self) -> Tensor: ...
    def anew(self, gradient: Callable[[Tensor], Tensor]) -> Any:
        """Return the state with the gradients that the next step uses computed again, and all else unchanged."""


class Running(NamedTuple):
    """The state of the loop. Without a tolerance every field except `state` has the shape `()` and is on the CPU.

    Attributes:
        state: the state of the solver.
        limit: the residual at which each lane stops, shape `lanes`.
        unit: the unit of the residual, shape `(*lanes, 1)`.
        lost: the lanes whose last step started from a residual of NaN, shape `lanes`.
        place: the point of the last residual, shape `(*lanes, n)`; NaN if the residual must be computed again.
        residual: the residual at that point, shape `lanes`; infinite if no residual is measured.
        origin: the start of the solve, shape `(*lanes, n)`, and the gradient there, `first`.
        mark: the smallest residual at the tests of progress so far, shape `lanes`.
        floor: the lanes that stopped because the residual no longer decreases near rounding error, shape `lanes`.
        least: for fixed-point problems, the smallest residual so far, shape `lanes`.
        since: for fixed-point problems, the number of steps since `least` fell, shape `lanes`.
        stuck: for fixed-point problems, the lanes that stopped because `least` does not fall, shape `lanes`.
        random: the lanes in which two evaluations at one point differ, shape `lanes`.
    """

    state: Any
    limit: Tensor
    unit: Tensor
    lost: Tensor
    place: Tensor
    residual: Tensor
    origin: Tensor
    first: Tensor
    mark: Tensor
    floor: Tensor
    random: Tensor
    least: Tensor
    since: Tensor
    stuck: Tensor

    @property
    def endless(self) -> bool:
        """Whether there is no tolerance, so that no lane stops before the last step."""
        return self.origin.ndim == 0

    @property
    def resting(self) -> Tensor:
        """The lanes that make no further step, booleans of shape `lanes`."""
        # A residual of NaN fulfils no comparison. Such lanes stop through `lost`, one step later.
        return (self.residual <= self.limit) | self.lost | self.floor | self.stuck

    @property
    def z(self) -> Tensor:
        """The iterate, shape `(*lanes, n)`."""
        z: Tensor = self.state.z
        return z

    @property
    def at(self) -> Place:
        """The iterate and the start of the solve, as constants: the stopping criterion is not differentiated."""
        return Place(self.state.z.detach(), self.state.slope.detach(), self.origin, self.first)


def aim(solver: Aims, problem: Problem, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stopping criterion of each lane, for a start at z with the gradient `slope`.

    Returns:
        The residual at which the lane stops, shape `lanes`, and the curvature that is its unit, shape `(*lanes, 1)`.
    """
    tol = solver.tol or 0.0
    reachable = ROUNDING * torch.finfo(slope.dtype).eps * length(slope, keepdim=False)
    if not solver.relative:
        return reachable.clamp(min=tol), torch.ones_like(slope[..., :1])
    # If the objective has a large scale, a step of the gradient itself leads far away, where a projection may not
    # converge. A step of gradient over curvature has the scale of z.
    unit, least = curvature(problem, z, slope)
    return torch.maximum(reachable, tol * least.squeeze(-1).clamp(max=1.0)), unit


def measured(problem: Problem, state: Running) -> Running:
    """Return the state with the residual at its iterate. The iterate stays the same while a solver rejects trials."""
    # Without a constraint or penalty the residual is the norm of the gradient, which costs less than this comparison.
    if not isinstance(problem.term, Free) and all_true_on_cpu(state.state.z == state.place):
        return state
    residual = problem.residual(state.state.z, state.state.slope, state.unit)
    return state._replace(place=state.state.z.detach(), residual=residual)


def confirmed(solver: Aims, problem: Problem, state: Running, stalled: Tensor | None = None) -> Running:
    """Return the state with a stopping criterion computed at its iterate: the tolerance, or the rounding error there.

    Args:
        solver: the solver.
        problem: the problem.
        state: a state in which every lane would stop.
        stalled: the lanes whose residual no longer decreases, shape `lanes`. They stop if rounding is the reason.
    """
    if all_true_on_cpu(state.residual == 0):
        return state
    at, tol = state.at, solver.tol or 0.0
    if stalled is not None:
        noise = rounding(problem, at.z, at.slope, state.residual, state.unit)
        floor = torch.maximum(noise, _FLOOR * resolution(problem, at.z) * at.size)
        if not all_true(state.resting) and all_true(~(stalled & (state.residual <= _NEAR * floor))):
            return state  # the residuals are too large for rounding: the lanes are slow, but still converge
    rise: Tensor | None = None
    if solver.relative:
        # The curvature at the start may differ from that at the solution, so the unit is measured again.
        (limit, loose), unit, rise = required_in_units(tol, problem, at)
        state = state._replace(unit=unit)
    elif all_true(state.residual > tol):
        # No lane meets the tolerance, so the gradients that a stricter limit costs would be wasted.
        limit = loose = torch.full_like(state.limit, tol)
    else:
        (limit, loose), rise = required(tol, problem, at, state.residual)
    residual = problem.residual(state.state.z, state.state.slope, state.unit)
    if not all_true(residual <= limit):
        if stalled is None:
            noise = rounding(problem, at.z, at.slope, residual, state.unit)
            floor = torch.maximum(noise, _FLOOR * resolution(problem, at.z) * at.size)
        late = residual > limit
        near = late & (residual <= floor)
        # One more gradient shows whether the objective is random: rounding hides a residual only if it is not.
        if not all_true(~(late & (residual <= _NEAR * floor))):
            random = late & ~repeats(problem, at)
            rise = curvature_along_residual(problem, at, None)[1] if rise is None else rise
            limit = torch.where(hidden(residual, rise, noise) & ~random & (noise > limit), noise, limit)
            ended = random
            if stalled is not None:
                limit = torch.where(near & stalled & ~random & (residual <= loose), loose, limit)
                ended = random | (near & stalled & (residual > limit))
            state = state._replace(random=random, floor=ended)
    # NaN differs from every z, so `measured` computes the residual again, in the new unit.
    return state._replace(
        state=solver.aimed(state.state, limit, state.unit), limit=limit, place=torch.full_like(state.place, torch.nan)
    )
