"""Newton's method on the free coordinates, all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import surely
from blo._settings import require_budget
from blo.errors import StructureError
from blo.linsolve import Auto, LinearSolver, loosened
from blo.operators import Hessian, Operator, Restricted, ScaledIdentity, Sum
from blo.solvers import _line
from blo.solvers._base import Problem
from blo.solvers._coordinate_bounds import bounds
from blo.solvers._iterative import Iterative


@dataclass(frozen=True)
class Newton(Iterative):
    """Newton's method for unconstrained problems and for bounds on the coordinates (`Box`, `NonNegative`).

    Coordinates that rest on a bound are left out of the linear system; the step is projected, and shortened until the
    objective has decreased enough. A lane whose Hessian is indefinite goes down the slope instead, and adds a multiple
    of the identity to its Hessian that grows until it is definite and fades afterwards.

    Far from the solution a Newton step is worth a few digits at most: an iterative linear solver stops there early.

    Source: Bertsekas (SIAM J. Control Optim. 1982), projected Newton methods; Nocedal and Wright (2006), section 3.4;
    Eisenstat and Walker (SIAM J. Sci. Comput. 1996), choice 2, for the accuracy of the steps.

    Args:
        max_steps: most evaluations of the gradient after the one at the start. Each step also solves a linear system
            with Hessian-vector products.
        tol: residual `|z - project(z - gradient)|` at which a lane stops; a smaller one where the curvature is small.
            None makes exactly `max_steps` steps.
        linear_solver: `Auto()` by default, which factorises up to 256 unknowns and uses conjugate gradients beyond.
        forcing: largest relative residual, between 0 and 1, at which `Auto`, `CG`, `MINRES` and `GMRES` stop. It falls
            with the square of the gradient, to what `tol` needs or the linear solver's own tolerance, whichever is
            larger. 0 solves every system to the latter.

    Raises:
        StructureError: if `linear_solver` has the wrong type.
        ValueError: for values outside these ranges.
    """

    max_steps: int = 100
    tol: float | None = 1e-8
    linear_solver: LinearSolver = field(default_factory=Auto)
    forcing: float = 0.5

    def __post_init__(self) -> None:
        require_budget(self.max_steps, self.tol)
        if not isinstance(self.linear_solver, LinearSolver):
            raise StructureError(f"`linear_solver` must be like blo.CG(), but is {self.linear_solver!r}.")
        if not 0 <= self.forcing < 1:
            raise ValueError(f"`forcing` must be at least 0 and below 1, but is {self.forcing}.")

    def start(self, problem: Problem, z0: Tensor) -> _State:
        """Evaluate at z0.

        Raises:
            StructureError: if the set is more than bounds on the coordinates.
        """
        bounds(problem.term, z0, "Newton")
        z = problem.prox(z0, 1.0)
        value, slope = problem.evaluate(z)
        none = torch.zeros_like(z0[..., :1])
        return _State(z, slope, z, none, none + self.forcing, _line.start(value, none))

    def move(self, problem: Problem, state: _State) -> _State:
        free = free_coordinates(problem, state.z, state.slope, "Newton")
        slope = state.slope if free is None else state.slope * free
        hessian: Operator = Hessian(problem.hessian(state.z))
        if not surely(state.shift == 0):
            hessian = Sum(hessian, ScaledIdentity(state.shift))
        found = loosened(self.linear_solver, state.forcing).solve(restricted(hessian, free), slope)
        step = found.x if free is None else torch.where(free, found.x, state.slope)
        descends = torch.isfinite(step).all(-1, keepdim=True) & ((step * state.slope).sum(-1, keepdim=True) > 0)
        usable = descends & ~found.indefinite.unsqueeze(-1)
        size = torch.linalg.vector_norm(state.slope, dim=-1, keepdim=True)
        step = torch.where(usable, step, state.slope / size.clamp(min=1.0))
        return state._replace(
            trial=problem.prox(state.z - state.line.length * step, 1.0), shift=_shifted(state.shift, size, usable)
        )

    def look(self, problem: Problem, state: _State) -> _State:
        value, slope = problem.evaluate(state.trial)
        accepted, line = _line.judge(state.line, value, state.trial - state.z, state.slope, slope)
        forcing = self._forcing(problem, state, slope)
        return _State(
            z=torch.where(accepted, state.trial, state.z),
            slope=torch.where(accepted, slope, state.slope),
            trial=state.trial,
            shift=state.shift,
            forcing=torch.where(accepted, forcing, state.forcing),
            line=line._replace(length=torch.where(accepted, 1.0, line.length)),
        )

    def _forcing(self, problem: Problem, state: _State, slope: Tensor) -> Tensor:
        """Return the relative residual for the system at the trial point, shape `(*lanes, 1)`."""
        now = problem.residual(state.trial, slope).detach().unsqueeze(-1)
        then = problem.residual(state.z, state.slope).detach().unsqueeze(-1)
        fallen = 0.9 * (now / then).square()
        held = 0.9 * state.forcing.square()
        forcing = torch.where(held > 0.1, torch.maximum(fallen, held), fallen)
        if self.tol is not None:
            forcing = torch.maximum(forcing, 0.5 * self.tol / now)
        # A NaN comes of nothing divided by nothing: such a lane has arrived.
        return torch.where(forcing < self.forcing, forcing, self.forcing)


class _State(NamedTuple):
    """Beside z, slope and trial, shapes `(*lanes, 1)`.

    Attributes:
        shift: times the identity is added to the Hessian.
        forcing: relative residual of the next linear system.
        line: the state of the line search.
    """

    z: Tensor
    slope: Tensor
    trial: Tensor
    shift: Tensor
    forcing: Tensor
    line: _line.Line

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))


@dataclass(frozen=True)
class _Mask:
    """The free coordinates, as a tangent space without curvature."""

    free: Tensor
    curvature: float = 0.0
    bend: None = None

    def project(self, v: Tensor) -> Tensor:
        return v * self.free

    def curve(self, v: Tensor) -> Tensor:
        return torch.zeros_like(v)


def free_coordinates(problem: Problem, z: Tensor, slope: Tensor, solver: str) -> Tensor | None:
    """Return the coordinates that no bound holds, booleans of z's shape; None where nothing is bounded."""
    limits = bounds(problem.term, z, solver)
    if limits is None:
        return None
    # How far from a bound a coordinate is held vanishes at a solution.
    margin: Tensor = problem.residual(z, slope).detach().unsqueeze(-1).clamp(max=1e-3)
    return _line.free(z, slope, *limits, margin)


def restricted(hessian: Operator, free: Tensor | None) -> Operator:
    """Return the operator on the free coordinates alone."""
    return hessian if free is None else Restricted(hessian, _Mask(free))


def _shifted(shift: Tensor, size: Tensor, usable: Tensor) -> Tensor:
    """Let the shift grow from the size of the slope where the Hessian is indefinite, and fade where it is not."""
    size = size.detach()
    grown = torch.maximum(10 * shift, 1e-3 * size)
    return torch.where(usable, torch.where(shift > 1e-6 * size, 0.1 * shift, 0.0), grown)
