"""Newton's method on the free coordinates, for all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import all_true_on_cpu
from blo._settings import require_budget
from blo._vectors import dot, norm, stepped
from blo.errors import StructureError
from blo.linsolve import Auto, LinearSolver
from blo.operators import Hessian, Operator, Restricted, ScaledIdentity, Sum
from blo.sets._norm import euclidean_norm
from blo.solvers import _line
from blo.solvers._base import Problem
from blo.solvers._iterative import Iterative


@dataclass(frozen=True)
class Newton(Iterative):
    """Newton's method for unconstrained problems and for sets that bound each coordinate by itself.

    These sets are `Box`, `NonNegative`, a `Product` of them, and sets of your own that define `bounds`.

    Coordinates at a bound are left out of the linear system. The step is projected onto the set and shortened until the
    objective decreases sufficiently. A lane whose Hessian is indefinite makes a gradient step instead, and adds a
    multiple of the identity to its Hessian. The multiple grows until the sum is positive definite, and shrinks
    afterwards.

    Far from the solution an accurate Newton step is not better than a rough one, so an iterative linear solver stops
    early there.

    Source: Bertsekas (SIAM J. Control Optim. 1982), projected Newton methods; Nocedal and Wright (2006), section 3.4;
    Eisenstat and Walker (SIAM J. Sci. Comput. 1996), choice 2, for the accuracy of the steps.

    Args:
        max_steps: maximum number of gradient evaluations after the one at the start. Each step also solves a linear
            system with Hessian-vector products.
        tol: a lane stops at this residual `|z - project(z - gradient)|`, in the unit of the gradient, or at a smaller
            one where the curvature is small. None makes exactly `max_steps` steps.
        linear_solver: `Auto()` by default, which factorises the Hessian for up to 256 unknowns and uses conjugate
            gradients beyond.
        forcing: largest relative residual, in [0, 1), at which `Auto`, `CG`, `MINRES` and `GMRES` stop. It
            follows 0.9 (residual / last residual)^2 (Eisenstat and Walker, 1996), down to the accuracy that `tol` needs
            or the linear solver's own tolerance, whichever is larger. 0 solves every system to the linear solver's own
            tolerance.

    Raises:
        StructureError: if `linear_solver` has the wrong type. The solve raises it for penalties, for sets that do not
            bound each coordinate by itself, and for fixed-point problems.
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
        """Return the state at the projection of z0.

        Raises:
            StructureError: if the set is not given by bounds on the coordinates.
        """
        _line.bounds(problem.term, z0, "Newton")
        z = problem.prox(z0, 1.0)
        value, slope = problem.evaluate(z)
        none = torch.zeros_like(z0[..., :1])
        return _State(z, slope, z, none, none + self.forcing, _line.start(value, none))

    def move(self, problem: Problem, state: _State) -> _State:
        free = free_coordinates(problem, state.z, state.slope, "Newton")
        slope = state.slope if free is None else state.slope * free
        hessian: Operator = Hessian(problem.hessian(state.z))
        if not all_true_on_cpu(state.shift == 0):
            hessian = Sum(hessian, ScaledIdentity(state.shift))
        found = self.linear_solver.relaxed(state.forcing).solve(restricted(hessian, free), slope)
        # Coordinates that are not free make a gradient step, which the projection stops at their bounds.
        step = found.x if free is None else torch.where(free, found.x, state.slope)
        descends = torch.isfinite(step).all(-1, keepdim=True) & (dot(step, state.slope) > 0)
        # Negative curvature can give a step towards a maximum or a saddle point, even if it is a descent direction.
        usable = descends & ~found.indefinite.unsqueeze(-1)
        size = length_of(problem, state.slope)
        step = torch.where(usable, step, state.slope / size.clamp(min=1.0))
        return state._replace(
            trial=problem.prox(state.z - state.line.length * step, 1.0),
            shift=_shifted(state.shift, stepped(size) if problem.followed else size.detach(), usable),
        )

    def look(self, problem: Problem, state: _State) -> _State:
        value, slope = problem.evaluate(state.trial)
        moved = state.trial - state.z
        accepted, line = _line.judge(state.line, value, moved, state.slope, slope, followed=problem.followed)
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
        # Eisenstat and Walker (1996), choice 2, with gamma = 0.9 and their safeguard against a sudden decrease.
        now = problem.residual(state.trial, slope).detach().unsqueeze(-1)
        then = problem.residual(state.z, state.slope).detach().unsqueeze(-1)
        fallen = 0.9 * (now / then).square()
        held = 0.9 * state.forcing.square()
        forcing = torch.where(held > 0.1, torch.maximum(fallen, held), fallen)
        if self.tol is not None:
            # A system solved more accurately than the outer tolerance needs wastes products.
            forcing = torch.maximum(forcing, 0.5 * self.tol / now)
        # 0 / 0 gives NaN if both residuals are zero. The lane has converged, so any value will do.
        return torch.where(forcing < self.forcing, forcing, self.forcing)


class _State(NamedTuple):
    """The state of Newton's method: z, slope, trial, and tensors of shape `(*lanes, 1)`.

    Attributes:
        shift: the multiple of the identity that is added to the Hessian.
        forcing: the relative residual at which the next linear solve stops.
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
    """The tangent space of the free coordinates, which has no curvature."""

    free: Tensor
    curvature: float = 0.0
    bend: None = None

    def project(self, v: Tensor) -> Tensor:
        return v * self.free

    def curve(self, v: Tensor) -> Tensor:
        return torch.zeros_like(v)


def free_coordinates(problem: Problem, z: Tensor, slope: Tensor, solver: str) -> Tensor | None:
    """Return the free coordinates, booleans of z's shape; None if the problem has no constraint."""
    limits = _line.bounds(problem.term, z, solver)
    if limits is None:
        return None
    # The margin of Bertsekas (1982) tends to zero with the residual, so that at a solution only the coordinates at
    # their bounds are held.
    margin: Tensor = problem.residual(z, slope).detach().unsqueeze(-1).clamp(max=1e-3)
    return _line.free(z, slope, *limits, margin)


def length_of(problem: Problem, slope: Tensor) -> Tensor:
    """Return the norm of the gradient, shape `(*lanes, 1)`."""
    # A fixed number of steps may reach a zero gradient, where the second derivative of `norm` is NaN.
    return euclidean_norm(slope) if problem.recorded else norm(slope)


def restricted(hessian: Operator, free: Tensor | None) -> Operator:
    """Return the operator restricted to the free coordinates."""
    return hessian if free is None else Restricted(hessian, _Mask(free))


def _shifted(shift: Tensor, size: Tensor, usable: Tensor) -> Tensor:
    """Return the next shift: larger if the Hessian was indefinite, smaller or zero otherwise."""
    # A shift proportional to the gradient vanishes at the solution, so that convergence stays fast there.
    # Start well below |g|; a shift below 1e-6 |g| no longer matters and is dropped.
    grown = torch.maximum(10 * shift, 1e-3 * size)
    return torch.where(usable, torch.where(shift > 1e-6 * size, 0.1 * shift, 0.0), grown)
