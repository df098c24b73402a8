"""Picard iteration, damped, with Anderson acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import choose, surely
from blo._settings import require_budget, require_count, require_positive
from blo.solvers._base import Problem
from blo.solvers._history import push, zeros
from blo.solvers._iterative import Iterative

#: Share of the distance to its image that a plain step may leave of that of the point before, and be fast.
_FAST = 0.5
#: Steps without a new least distance, in units of it, after which acceleration rests until there is one: it may hold a
#: lane where the distance has a least value that is not zero.
_REST, _SOME = 32, 0.9


@dataclass(frozen=True)
class FixedPoint(Iterative):
    """Iterates `z <- prox(z - step * gradient(z))`; for `LowerProblem.fixed_point(f)`, `z <- f(theta, z)`.

    With `memory`, each step combines the last points so that their residuals cancel best in the least-squares sense,
    which converges for many maps that are not contractions. An accelerated step after which the map moves the point
    further than before is taken back and a plain one made instead, in each lane by itself. As long as plain steps halve
    the distance, they are all that is made: each costs an evaluation of the map and little else.

    Source: Walker and Ni (SIAM J. Numer. Anal. 2011), algorithm AA; Mai and Johansson (ICML 2020), for constraints and
    penalties, where the points before the proximal map are combined.

    Args:
        step: weight of the gradient; 1 for fixed points, at most 2 over the largest curvature for objectives.
        relaxation: how far to go towards the image of the current point, in (0, 1]; smaller damps oscillations.
        memory: differences of past points to combine; 0 for plain iteration. Memory grows by `2 * memory` vectors.
        max_steps: most evaluations after the one at the start.
        tol: residual `|z - prox(z - gradient)|` at which a lane stops, for fixed points `|z - f(theta, z)|`. None makes
            exactly `max_steps` steps, measures nothing and never waits for the device.

    Raises:
        ValueError: for values outside these ranges.
        StructureError: for a `step` that requires grad.
    """

    step: float = 1.0
    relaxation: float = 1.0
    memory: int = 5
    max_steps: int = 1000
    tol: float | None = 1e-8

    def __post_init__(self) -> None:
        require_positive(self.step, "step")
        require_budget(self.max_steps, self.tol)
        if not 0 < self.relaxation <= 1:
            raise ValueError(f"`relaxation` must lie in (0, 1], but is {self.relaxation}.")
        require_count(self.memory, "memory", "Zero iterates without acceleration.", least=0)

    def start(self, problem: Problem, z0: Tensor) -> _State:
        slope = problem.gradient(z0)
        past = zeros(z0, self.memory)
        plain = torch.ones_like(z0[..., :1], dtype=torch.bool)
        inf = torch.full_like(z0[..., :1], torch.inf)
        return _State(z0, slope, z0, z0, z0, past, past, plain, inf, torch.zeros_like(inf))

    def move(self, problem: Problem, state: _State) -> _State:
        force = self._force(state.z, state.slope, state.origin)
        aim = state.origin + (force if self.relaxation == 1 else self.relaxation * force)
        if self.memory and not surely(state.plain):
            aim = aim - torch.where(state.plain, 0.0, _correction(state, force, self.relaxation))
        return state._replace(trial=problem.prox(aim, self.step), aim=aim)

    def look(self, problem: Problem, state: _State) -> _State:
        slope = problem.gradient(state.trial)
        if not self.memory:
            return state._replace(z=state.trial, slope=slope, origin=state.aim)
        origin, aim = state.origin, state.aim
        before = self._force(state.z, state.slope, origin)
        force = self._force(state.trial, slope, aim)
        size = _norm(force.detach())
        last = _norm(before.detach())
        kept = state.plain | (size <= last)
        fast = state.plain & (size <= _FAST * last)
        gained = size < _SOME * state.least
        since = torch.where(gained, 0.0, state.since + 1)
        state = state._replace(
            z=choose(kept, state.trial, state.z),
            slope=choose(kept, slope, state.slope),
            origin=choose(kept, state.aim, state.origin),
            plain=~kept | fast | (since >= _REST),
            least=torch.where(gained, size, state.least),
            since=since,
        )
        if surely(fast):
            return state
        # A step that is taken back has still measured the map along it.
        finite = torch.isfinite(size)
        moves = push(state.moves, torch.where(finite, aim - origin, 0.0))
        turns = push(state.turns, torch.where(finite, force - before, 0.0))
        fast = fast.unsqueeze(-1)
        return state._replace(moves=choose(fast, state.moves, moves), turns=choose(fast, state.turns, turns))

    def _force(self, z: Tensor, slope: Tensor, origin: Tensor) -> Tensor:
        """Return how far the map moves `origin`, of which z is the proximal point."""
        whole = slope if self.step == 1 else self.step * slope
        return -whole if z is origin else (z - origin) - whole


class _State(NamedTuple):
    """Beside z, slope and trial: the points before the proximal map, with their history.

    Attributes:
        origin: z is its proximal point.
        aim: trial is its proximal point.
        moves: past changes of `origin`, newest last, shape `(*lanes, memory, n)`; zero where there was none.
        turns: past changes of how far the map moves `origin`, likewise.
        plain: the next step is not to be accelerated, shape `(*lanes, 1)`.
        least: the least distance to the image so far, likewise.
        since: steps since it fell by more than a little, likewise.
    """

    z: Tensor
    slope: Tensor
    trial: Tensor
    origin: Tensor
    aim: Tensor
    moves: Tensor
    turns: Tensor
    plain: Tensor
    least: Tensor
    since: Tensor

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))


def _correction(state: _State, force: Tensor, relaxation: float) -> Tensor:
    """Return `(moves + relaxation turns)' c` with the c that minimises `|force - turns' c|`, regularised."""
    square = (state.turns * state.turns).sum(-1, keepdim=True)
    used = square > 0
    length = torch.where(used, torch.where(used, square, 1.0).sqrt(), 1.0)
    unit = state.turns / length
    gram = unit @ unit.mT
    # The weight balances the rounding of the normal equations, eps / weight, against what it takes off the solution.
    weight = torch.finfo(gram.dtype).eps ** (2 / 3)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    right = unit @ force.unsqueeze(-1)
    found, _ = torch.linalg.solve_ex(gram + weight * eye, right)
    correction: Tensor = (state.moves + relaxation * state.turns).mT @ (found / length)
    return correction.squeeze(-1)


def _norm(vector: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return size
