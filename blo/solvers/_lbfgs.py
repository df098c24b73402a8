"""Limited-memory BFGS with bounds on the coordinates, for all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._precision import require_single
from blo._settings import require_budget, require_count
from blo._vectors import dot, norm, push, stepped
from blo.solvers import _line
from blo.solvers._base import Problem
from blo.solvers._iterative import Iterative
from blo.solvers._reduced import bounded_step


@dataclass(frozen=True)
class LBFGS(Iterative):
    """Limited-memory BFGS for unconstrained problems and for sets that bound each coordinate by itself.

    These sets are `Box`, `NonNegative`, a `Product` of them, and sets of your own that define `bounds`.

    Each lane has its own curvature pairs, line search and stopping criterion. A coordinate that a short gradient step
    moves onto a bound is not free: it makes the gradient step, and the quasi-Newton step is computed on the free
    coordinates. The step is projected onto the set and shortened until the objective decreases sufficiently. Near the
    solution, where values differ only by rounding, the line search compares gradients instead of values.

    Source: Byrd, Nocedal and Schnabel (Math. Prog. 1994), theorem 2.2, for the inverse; Byrd, Lu, Nocedal and Zhu
    (SIAM J. Sci. Comput. 1995) for the inverse on the free coordinates; Bertsekas (SIAM J. Control Optim. 1982) for the
    projected steps; Hager and Zhang (SIAM J. Optim. 2005) for the line search by gradients.

    Args:
        memory: number of curvature pairs; the state grows by `2 * memory` vectors.
        max_steps: maximum number of evaluations after the one at the start; each tries one step, which may be rejected.
        tol: a lane stops at this residual `|z - project(z - gradient)|`, in the unit of the gradient, or at a smaller
            one where the curvature is small. None makes exactly `max_steps` steps.
        relative: `tol` is in units of the curvature if that is below 1, so that scaling the objective by a small factor
            does not stop the solve earlier. This takes one more gradient.

    Raises:
        ValueError: for values outside these ranges.
        StructureError: by the solve, for penalties, for sets that do not bound each coordinate by itself, for
            fixed-point problems, and in half precision.
    """

    memory: int = 10
    max_steps: int = 1000
    tol: float | None = 1e-8
    relative: bool = False

    def __post_init__(self) -> None:
        require_budget(self.max_steps, self.tol)
        require_count(self.memory, "memory")

    def start(self, problem: Problem, z0: Tensor) -> _State:
        """Return the state at the projection of z0.

        Raises:
            StructureError: if the set is not given by bounds on the coordinates, or in half precision.
        """
        require_single(z0.dtype, "LBFGS", "ProjectedGradient")
        _line.bounds(problem.term, z0, "LBFGS")
        z = problem.prox(z0, 1.0)
        value, slope = problem.evaluate(z)
        past = z0.new_zeros((*z0.shape[:-1], self.memory, z0.shape[-1]))
        # Without curvature pairs the scale of the step is unknown: the first step has a length of at most 1.
        size = norm(slope.detach()).clamp(min=1.0)
        scale = 1.0 / (stepped(size) if problem.followed else size)
        return _State(z, slope, z, scale, past, past, _line.start(value, scale))

    def move(self, problem: Problem, state: _State) -> _State:
        step = _step(state, _line.bounds(problem.term, state.z, "LBFGS"))
        return state._replace(trial=problem.prox(state.z + state.line.length * step, 1.0))

    def look(self, problem: Problem, state: _State) -> _State:
        value, slope = problem.evaluate(state.trial)
        moved, turned = state.trial - state.z, slope - state.slope
        accepted, line = _line.judge(state.line, value, moved, state.slope, slope, followed=problem.followed)
        bent = dot(moved, turned) > 0
        # Only pairs of positive curvature keep the BFGS inverse positive definite. A pair is stored only for an
        # accepted step, so that it describes the path of the iterates.
        stored = (accepted & bent).unsqueeze(-1)
        return _State(
            z=torch.where(accepted, state.trial, state.z),
            slope=torch.where(accepted, slope, state.slope),
            trial=state.trial,
            scale=state.scale,
            moves=torch.where(stored, push(state.moves, moved), state.moves),
            turns=torch.where(stored, push(state.turns, turned), state.turns),
            # With a new pair the quasi-Newton step has the right scale, so the line search starts from length 1.
            line=line._replace(length=torch.where(accepted & bent, 1.0, line.length)),
        )


class _State(NamedTuple):
    """The state of L-BFGS: z, slope, trial, and the data of the inverse Hessian.

    Attributes:
        scale: the inverse curvature to use without curvature pairs, shape `(*lanes, 1)`.
        moves: past changes of z, newest last, shape `(*lanes, memory, n)`; zero before the first ones.
        turns: the changes of the gradient along them.
        line: the state of the line search.
    """

    z: Tensor
    slope: Tensor
    trial: Tensor
    scale: Tensor
    moves: Tensor
    turns: Tensor
    line: _line.Line

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))


def _step(state: _State, limits: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return minus the inverse Hessian times the gradient; with bounds, on the free coordinates."""
    s, y, g = state.moves, state.turns, state.slope
    inner = (s * y).sum(-1)
    squared = (y * y).sum(-1)
    # Only pairs whose curvature is positive and above rounding error are used.
    used = inner > torch.finfo(s.dtype).eps * ((s * s).sum(-1) * squared).sqrt().detach()
    newest = used & (used.flip(-1).cumsum(-1).flip(-1) == 1)
    # Scaling each pair to curvature 1 keeps the matrices well conditioned. Unused pairs become zero.
    weight = torch.where(used, torch.where(used, inner, 1.0).rsqrt(), 0.0).unsqueeze(-1)
    s, y = weight * s, weight * y
    if limits is not None:
        return bounded_step(state.z, g, *limits, s, y, used, newest, state.scale)
    # The newest used pair gives the scale of the initial inverse, `s'y / y'y` (Nocedal and Wright 2006, equation 7.20).
    ratio = torch.where(newest, inner / torch.where(used, squared, 1.0), 0.0).sum(-1, keepdim=True)
    scale = torch.where(used.any(-1, keepdim=True), ratio, state.scale)
    # The compact form of the inverse (Byrd, Nocedal and Schnabel 1994, theorem 2.2), with the pairs as rows.
    gram = y @ y.mT
    identity = torch.eye(gram.shape[-1], dtype=g.dtype, device=g.device)
    triangle = (s @ y.mT).triu(1) + identity
    a = torch.linalg.solve_triangular(triangle, s @ g.unsqueeze(-1), upper=True)
    gamma = scale.unsqueeze(-1)
    b = a + gamma * (gram @ a - y @ g.unsqueeze(-1))
    p = torch.linalg.solve_triangular(triangle.mT, b, upper=False)
    image = scale * g + (s.mT @ p - gamma * (y.mT @ a)).squeeze(-1)
    # For an ill-conditioned inverse, rounding can turn the step into an ascent direction. The negative gradient is
    # always a descent direction.
    descends = dot(image, g) > 0
    return -torch.where(descends, image, scale * g)
