"""Where a lane stops: what is asked of its residual at the start, and what is found out where it would stop."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._autodiff import all_true, surely
from blo._curvature import bend
from blo.sets import Free
from blo.solvers._base import Problem
from blo.solvers._running import Aims, Running
from blo.solvers._stopping import (
    curvature,
    hidden,
    reachable,
    repeats,
    required,
    required_in_units,
    resolution,
    rounding,
)

#: Units of rounding of the largest gradient below which a solve may stop where nothing improves.
_FLOOR = 64
#: Times that residual below which a solve that does not improve may owe it to an objective that is not a function.
_NEAR = 100


def aim(solver: Aims, problem: Problem, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each lane stops that starts at z with this slope.

    Returns:
        The residual to reach, shape `lanes`, and the curvature in whose units it is measured, shape `(*lanes, 1)`.
    """
    tol = solver.tol or 0.0
    if not solver.relative:
        unit = torch.ones_like(slope[..., :1])
        return reachable(slope).clamp(min=tol), unit
    # A unit step of an objective in a large unit leads far away, where a projection may not be found.
    unit, least = curvature(problem, z, slope)
    return torch.maximum(reachable(slope), tol * least.squeeze(-1).clamp(max=1.0)), unit


def measured(solver: Aims, problem: Problem, state: Running) -> Running:
    """Return the state with the residual of its point. A solver may rest on a point while it looks at others."""
    # Without a term the residual is a length, which costs less than to tell that z is where it was.
    if solver.tol is None or (not isinstance(problem.term, Free) and surely(state.state.z == state.place)):
        return state
    return state._replace(place=state.state.z.detach(), residual=_residual(solver, problem, state))


def confirmed(solver: Aims, problem: Problem, state: Running, stalled: Tensor | None = None) -> Running:
    """Return the state with the residual to reach from where it is: as asked for, or the gradient's rounding there.

    Args:
        solver: the solver.
        problem: the problem.
        state: where all lanes would stop.
        stalled: lanes that have ceased to improve, shape `lanes`, which stop for good where rounding is the reason.
    """
    if surely(state.residual == 0):
        return state
    at, tol = state.at, solver.tol or 0.0
    unit = state.unit if solver.relative else None
    if stalled is not None:
        noise = rounding(problem, at.z, at.slope, state.residual, unit)
        floor = torch.maximum(noise, _FLOOR * resolution(problem, at.z) * at.size)
        if not all_true(state.resting) and all_true(~(stalled & (state.residual <= _NEAR * floor))):
            return state  # slow, but on its way
    rise: Tensor | None = None
    if solver.relative:
        (limit, loose), unit, rise = required_in_units(tol, problem, at)
        state = state._replace(unit=unit)
    elif all_true(state.residual > tol):
        limit = loose = torch.full_like(state.limit, tol)
    else:
        (limit, loose), rise = required(tol, problem, at, state.residual)
    residual = _residual(solver, problem, state)
    if not all_true(residual <= limit):
        if stalled is None:
            noise = rounding(problem, at.z, at.slope, residual, unit)
            floor = torch.maximum(noise, _FLOOR * resolution(problem, at.z) * at.size)
        late = residual > limit
        near = late & (residual <= floor)
        if not all_true(~(late & (residual <= _NEAR * floor))):
            random = late & ~repeats(problem, at)
            rise = bend(problem, at, None)[1] if rise is None else rise
            limit = torch.where(hidden(residual, rise, noise) & ~random & (noise > limit), noise, limit)
            ended = random
            if stalled is not None:
                limit = torch.where(near & stalled & ~random & (residual <= loose), loose, limit)
                ended = random | (near & stalled & (residual > limit))
            state = state._replace(random=random, floor=ended)
    return state._replace(
        state=solver.aimed(state.state, limit, state.unit), limit=limit, place=torch.full_like(state.place, torch.nan)
    )


def _residual(solver: Aims, problem: Problem, state: Running) -> Tensor:
    z, slope = state.state.z, state.state.slope
    return problem.residual(z, slope, state.unit) if solver.relative else problem.residual(z, slope)
