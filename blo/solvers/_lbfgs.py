"""Limited-memory quasi-Newton steps on the free coordinates, all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._settings import require_budget, require_count
from blo.linsolve._base import require_single
from blo.solvers import _line
from blo.solvers._base import Problem
from blo.solvers._coordinate_bounds import bounds
from blo.solvers._history import push, zeros
from blo.solvers._iterative import Iterative
from blo.solvers._reduced import bounded_step, used_pairs


@dataclass(frozen=True)
class LBFGS(Iterative):
    """Limited-memory BFGS for unconstrained problems and for bounds on the coordinates (`Box`, `NonNegative`).

    Each lane has its own curvature pairs, its own line search and its own stopping. Coordinates that a short step down
    the slope takes onto a bound are left out of the quasi-Newton step and go there; the step is projected, and
    shortened until the objective has decreased enough. Near the solution, where values differ by their rounding alone,
    gradients decide.

    Source: Byrd, Nocedal and Schnabel (Math. Prog. 1994), theorem 2.2, for the inverse; Byrd, Lu, Nocedal and Zhu
    (SIAM J. Sci. Comput. 1995) for its part on the free coordinates; Bertsekas (SIAM J. Control Optim. 1982) for the
    projected steps; Hager and Zhang (SIAM J. Optim. 2005) for the decision by gradients.

    Args:
        memory: curvature pairs to keep; memory grows by `2 * memory` vectors.
        max_steps: most evaluations after the one at the start.
        tol: residual `|z - project(z - gradient)|` at which a lane stops; a smaller one where the curvature is small.
            None makes exactly `max_steps` steps.
        relative: `tol` is in units of the curvature where that is below 1, so that an objective in a small unit is
            solved as well; it takes one more gradient.

    Raises:
        ValueError: for values outside these ranges.
    """

    memory: int = 10
    max_steps: int = 1000
    tol: float | None = 1e-8
    relative: bool = False

    def __post_init__(self) -> None:
        require_budget(self.max_steps, self.tol)
        require_count(self.memory, "memory")

    def start(self, problem: Problem, z0: Tensor) -> _State:
        """Evaluate at z0.

        Raises:
            StructureError: if the set is more than bounds on the coordinates, or in half precision.
        """
        require_single(z0, "LBFGS", "ProjectedGradient")
        bounds(problem.term, z0, "LBFGS")
        z = problem.prox(z0, 1.0)
        value, slope = problem.evaluate(z)
        past = zeros(z0, self.memory)
        # Without curvature pairs the first move is as long as one unit at most.
        scale = 1.0 / torch.linalg.vector_norm(slope.detach(), dim=-1, keepdim=True).clamp(min=1.0)
        return _State(z, slope, z, scale, past, past, _line.start(value, scale))

    def move(self, problem: Problem, state: _State) -> _State:
        step = _step(state, bounds(problem.term, state.z, "LBFGS"))
        return state._replace(trial=problem.prox(state.z + state.line.length * step, 1.0))

    def look(self, problem: Problem, state: _State) -> _State:
        value, slope = problem.evaluate(state.trial)
        moved, turned = state.trial - state.z, slope - state.slope
        accepted, line = _line.judge(state.line, value, moved, state.slope, slope)
        bent = (moved * turned).sum(-1, keepdim=True) > 0
        # A pair of no positive curvature has no place in a positive definite inverse.
        stored = (accepted & bent).unsqueeze(-1)
        return _State(
            z=torch.where(accepted, state.trial, state.z),
            slope=torch.where(accepted, slope, state.slope),
            trial=state.trial,
            scale=state.scale,
            moves=torch.where(stored, push(state.moves, moved), state.moves),
            turns=torch.where(stored, push(state.turns, turned), state.turns),
            line=line._replace(length=torch.where(accepted & bent, 1.0, line.length)),
        )


class _State(NamedTuple):
    """Beside z, slope and trial: what the inverse Hessian is made of.

    Attributes:
        scale: inverse curvature where no pair tells it, shape `(*lanes, 1)`.
        moves: past changes of z, newest last, shape `(*lanes, memory, n)`; zero where there was none.
        turns: the changes of the slope along them.
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
    """Return minus the inverse Hessian times the slope, within bounds for the free coordinates."""
    s, y, g = state.moves, state.turns, state.slope
    if limits is not None:
        return bounded_step(state.z, g, *limits, s, y, state.scale)
    inner = (s * y).sum(-1)
    squared = (y * y).sum(-1)
    used = used_pairs(s, y)
    # Pairs of unit curvature keep the triangular matrix well scaled; those that are not used are zero.
    weight = torch.where(used, torch.where(used, inner, 1.0).rsqrt(), 0.0).unsqueeze(-1)
    s, y = weight * s, weight * y
    newest = used & (used.flip(-1).cumsum(-1).flip(-1) == 1)
    ratio = torch.where(newest, inner / torch.where(used, squared, 1.0), 0.0).sum(-1, keepdim=True)
    scale = torch.where(used.any(-1, keepdim=True), ratio, state.scale)
    gram = y @ y.mT
    identity = torch.eye(gram.shape[-1], dtype=g.dtype, device=g.device)
    triangle = (s @ y.mT).triu(1) + identity
    a = torch.linalg.solve_triangular(triangle, s @ g.unsqueeze(-1), upper=True)
    gamma = scale.unsqueeze(-1)
    b = a + gamma * (gram @ a - y @ g.unsqueeze(-1))
    p = torch.linalg.solve_triangular(triangle.mT, b, upper=False)
    image = scale * g + (s.mT @ p - gamma * (y.mT @ a)).squeeze(-1)
    # Rounding can spoil the descent of an ill-conditioned inverse; the slope itself always descends.
    descends = (image * g).sum(-1, keepdim=True) > 0
    return -torch.where(descends, image, scale * g)
