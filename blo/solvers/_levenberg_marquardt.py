"""Damped Gauss-Newton steps for least-squares problems, for all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from blo._settings import require_budget, require_nonnegative
from blo._vectors import dot
from blo.errors import StructureError
from blo.linsolve import Auto, LinearSolver
from blo.operators import Hessian, ScaledIdentity, Sum
from blo.solvers import _line
from blo.solvers._base import Problem
from blo.solvers._iterative import Iterative
from blo.solvers._newton import free_coordinates, length_of, restricted

#: Smallest damping after a rejected step, in units of the curvature: a damping of 0 cannot grow by multiplication.
_LEAST = 1e-3


@dataclass(frozen=True)
class LevenbergMarquardt(Iterative):
    """The Levenberg-Marquardt method for `LowerProblem.least_squares`, without a constraint or with bounds.

    Bounds are `Box`, `NonNegative`, a `Product` of them, or a set of your own that defines `bounds`.

    A step solves `(J'J + d I) s = J'r` with the Jacobian J of the residuals r, and is projected onto the set. The
    damping d decreases if the objective falls about as much as the quadratic model predicts, so that the steps become
    Gauss-Newton steps. It grows if the objective falls much less. A step that does not decrease the objective
    sufficiently is rejected. Coordinates at a bound are left out of the system. Each lane has its own damping and
    stopping criterion.

    Source: Marquardt (SIAM J. Appl. Math. 1963); Fletcher (AERE R6799, 1971), for the schedule of the damping; Madsen,
    Nielsen and Tingleff (2004), Methods for non-linear least squares problems, section 3.2, for its growth.

    Args:
        max_steps: maximum number of gradient evaluations after the one at the start. Each step also solves a linear
            system with products of J and its transpose.
        tol: a lane stops at this residual `|z - project(z - gradient)|`, in the unit of the gradient, or at a smaller
            one where the curvature is small. None makes exactly `max_steps` steps.
        linear_solver: `Auto()` by default, which factorises J'J for up to 256 unknowns and uses conjugate gradients
            beyond.
        damping: the first damping, in units of the curvature of J'J along the gradient; 0 starts with a Gauss-Newton
            step.
        products: how J v is computed: `"reverse"`, by a second backward pass through one graph of the residuals, or
            `"forward"`, in forward mode, which evaluates the residuals again.

    Raises:
        StructureError: if `linear_solver` has the wrong type. The solve raises it for other problems and sets.
        ValueError: for values outside these ranges, or an unknown `products`.
    """

    max_steps: int = 100
    tol: float | None = 1e-8
    linear_solver: LinearSolver = field(default_factory=Auto)
    damping: float = 1e-3
    products: Literal["reverse", "forward"] = "reverse"

    def __post_init__(self) -> None:
        require_budget(self.max_steps, self.tol)
        require_nonnegative(self.damping, "damping")
        if not isinstance(self.linear_solver, LinearSolver):
            raise StructureError(f"`linear_solver` must be like blo.CG(), but is {self.linear_solver!r}.")
        if self.products not in ("reverse", "forward"):
            raise ValueError(f"`products` must be 'reverse' or 'forward', but is {self.products!r}.")

    def start(self, problem: Problem, z0: Tensor) -> _State:
        """Return the state at the projection of z0.

        Raises:
            StructureError: if the problem is not a least-squares problem, or the set is not given by bounds.
        """
        _line.bounds(problem.term, z0, "LevenbergMarquardt")
        z = problem.prox(z0, 1.0)
        value, slope = problem.evaluate(z)
        image = problem.gauss_newton(z, self.products)(slope).detach()
        square = slope.detach().square().sum(-1, keepdim=True)
        unit = dot(slope.detach(), image) / torch.where(square > 0, square, 1.0)
        # Rounded to a power of two, the unit is locally constant, like all factors of the damping. So its derivative is
        # zero, and unrolled steps are differentiated correctly although the damping is detached.
        unit = torch.where(torch.isfinite(unit) & (unit > 0), unit, 1.0).log2().round().exp2()
        return _State(z, slope, z, self.damping * unit, torch.full_like(unit, 2.0), unit, _line.start(value, unit))

    def move(self, problem: Problem, state: _State) -> _State:
        free = free_coordinates(problem, state.z, state.slope, "LevenbergMarquardt")
        slope = state.slope if free is None else state.slope * free
        squares = Hessian(problem.gauss_newton(state.z, self.products), positive=True)
        system = restricted(Sum(squares, ScaledIdentity(state.shift)), free)
        step = self.linear_solver.solve(system, slope).x
        step = step if free is None else torch.where(free, step, state.slope / (1 + state.shift))
        # Without damping the system may be singular. Then make a gradient step of length at most 1.
        usable = torch.isfinite(step).all(-1, keepdim=True)
        step = torch.where(usable, step, state.slope / length_of(problem, state.slope).clamp(min=1.0))
        return state._replace(trial=problem.prox(state.z - step, 1.0))

    def look(self, problem: Problem, state: _State) -> _State:
        value, slope = problem.evaluate(state.trial)
        moved = state.trial - state.z
        accepted, line = _line.judge(state.line, value, moved, state.slope, slope, followed=problem.followed)
        shift, growth = _damped(state, value, moved, accepted)
        return _State(
            z=torch.where(accepted, state.trial, state.z),
            slope=torch.where(accepted, slope, state.slope),
            trial=state.trial,
            shift=shift,
            growth=growth,
            unit=state.unit,
            line=line,
        )


class _State(NamedTuple):
    """The state of the method: z, slope, trial, and tensors of shape `(*lanes, 1)`.

    Attributes:
        shift: the damping.
        growth: the factor of the damping if the next step is rejected.
        unit: the curvature along the first gradient, rounded to a power of two.
        line: the objective at z, and the number of consecutive rejected trials.
    """

    z: Tensor
    slope: Tensor
    trial: Tensor
    shift: Tensor
    growth: Tensor
    unit: Tensor
    line: _line.Line

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))


def _damped(state: _State, value: Tensor, moved: Tensor, accepted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next damping and its growth factor, from the ratio of the actual to the predicted decrease."""
    moved, slope = moved.detach(), state.slope.detach()
    # The decrease of the model at h = moved, h'(d h - g) / 2, because (J'J + d I) h = -g.
    promised = 0.5 * (state.shift * moved * moved - slope * moved).sum(-1, keepdim=True)
    gain = state.line.value - value.detach().unsqueeze(-1)
    # If the values differ only by rounding, their ratio is meaningless. The line search has then compared gradients, so
    # the step counts as predicted well.
    noise = torch.finfo(gain.dtype).eps ** (2 / 3) * state.line.value.abs()
    reliable = (promised > noise) & torch.isfinite(gain)
    ratio = torch.where(reliable, gain / torch.where(reliable, promised, 1.0), 1.0)
    # Shrink and growth factors of Fletcher (1971). Repeated rejections double the growth factor (Madsen et al.).
    fallen = state.shift * torch.where(ratio > 0.75, 1 / 3, torch.where(ratio < 0.25, 2.0, torch.ones_like(ratio)))
    grown = torch.maximum(state.shift, _LEAST * state.unit) * state.growth
    return torch.where(accepted, fallen, grown), torch.where(accepted, 2.0, 2 * state.growth)
