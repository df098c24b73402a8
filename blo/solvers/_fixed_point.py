"""Damped Picard iteration with Anderson acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import all_true_on_cpu, choose
from blo._settings import require_budget, require_count, require_positive
from blo._vectors import dot, norm, push
from blo.solvers._base import Problem
from blo.solvers._iterative import Iterative

#: A plain step is fast if it reduces the residual (the distance of a point to its image) to this share or less.
_FAST = 0.5
#: After `_REST` steps in which the residual has not fallen below `_SOME` times its smallest value, the steps are plain
#: until it does: acceleration may be trapped at a local minimum of the residual that is not a solution.
_REST, _SOME = 32, 0.9


@dataclass(frozen=True)
class FixedPoint(Iterative):
    """Iterates `z <- prox(z - step * gradient(z))`; for `LowerProblem.fixed_point(f)`, `z <- f(theta, z)`.

    With `memory`, each step combines the last iterates with the weights that minimise the norm of the combined
    residual (Anderson acceleration). This converges for many maps that are not contractions. If an accelerated step
    increases the residual, it is rejected and a plain step follows, in each lane separately. As long as plain steps
    halve the residual, no step is accelerated, because a plain step costs little more than an evaluation of the map.

    Source: Walker and Ni (SIAM J. Numer. Anal. 2011), algorithm AA; Mai and Johansson (ICML 2020), for constraints and
    penalties, where the points before the proximal map are combined.

    Args:
        step: weight of the gradient; 1 for fixed points; for objectives below 2 over the largest curvature, in units of
            z squared over objective.
        relaxation: share of the way from the current point to its image that a step goes, in (0, 1]; a smaller share
            damps oscillations.
        memory: number of past differences that are combined; 0 for plain iteration. The state grows by `2 * memory`
            vectors.
        max_steps: maximum number of evaluations after the one at the start.
        tol: a lane stops at this residual `|z - prox(z - gradient)|`, in the unit of the gradient; for fixed points
            `|z - f(theta, z)|`, in that of z. None makes exactly `max_steps` steps, measures no residual and never
            waits for the device.

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
        past = z0.new_zeros((*z0.shape[:-1], self.memory, z0.shape[-1]))
        plain = torch.ones_like(z0[..., :1], dtype=torch.bool)
        inf = torch.full_like(z0[..., :1], torch.inf)
        return _State(z0, slope, z0, z0, z0, past, past, plain, inf, torch.zeros_like(inf))

    def move(self, problem: Problem, state: _State) -> _State:
        defect = self._defect(state.z, state.slope, state.origin)
        aim = state.origin - (defect if self.relaxation == 1 else self.relaxation * defect)
        if self.memory and not all_true_on_cpu(state.plain):
            aim = aim + torch.where(state.plain, 0.0, _correction(state, defect, self.relaxation))
        return state._replace(trial=problem.prox(aim, self.step), aim=aim)

    def look(self, problem: Problem, state: _State) -> _State:
        slope = problem.gradient(state.trial)
        if not self.memory:
            return state._replace(z=state.trial, slope=slope, origin=state.aim)
        origin, aim = state.origin, state.aim
        before = self._defect(state.z, state.slope, origin)
        defect = self._defect(state.trial, slope, aim)
        size = norm(defect.detach())
        last = norm(before.detach())
        # A plain step is always kept. So a lane cannot reject all steps and stay where it is.
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
        if all_true_on_cpu(fast):
            return state
        # A rejected step also gives a valid difference of the map. A difference that is not finite would make all later
        # steps NaN, so it is replaced by zero.
        finite = torch.isfinite(size)
        moves = push(state.moves, torch.where(finite, aim - origin, 0.0))
        turns = push(state.turns, torch.where(finite, before - defect, 0.0))
        fast = fast.unsqueeze(-1)
        return state._replace(moves=choose(fast, state.moves, moves), turns=choose(fast, state.turns, turns))

    def _defect(self, z: Tensor, slope: Tensor, origin: Tensor) -> Tensor:
        """Return minus the step of the map from `origin`, whose proximal point is z."""
        # Without a constraint or penalty z is `origin`: leave out the difference of equal tensors, which would be
        # differentiated as well.
        whole = slope if self.step == 1 else self.step * slope
        return whole if z is origin else whole - (z - origin)


class _State(NamedTuple):
    """The state of the iteration: z, slope, trial, and the points before the proximal map with their history.

    Attributes:
        origin: the point whose proximal point is z.
        aim: the point whose proximal point is the trial.
        moves: past changes of `origin`, newest last, shape `(*lanes, memory, n)`; zero before the first ones.
        turns: past changes of the step of the map from `origin`, with the same shape.
        plain: whether the next step is a plain one, shape `(*lanes, 1)`.
        least: the smallest residual so far, shape `(*lanes, 1)`.
        since: the number of steps since `least` last fell below `_SOME` times its value, shape `(*lanes, 1)`.
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


def _correction(state: _State, defect: Tensor, relaxation: float) -> Tensor:
    """Return `(moves + relaxation turns)' c` with the c that minimises `|defect - turns' c|`, with regularisation."""
    # Rows of length one make the normal equations independent of the scale of each difference. Empty rows stay zero.
    square = dot(state.turns, state.turns)
    used = square > 0
    length = torch.where(used, torch.where(used, square, 1.0).sqrt(), 1.0)
    unit = state.turns / length
    gram = unit @ unit.mT
    # The normal equations square the condition number. The weight balances their rounding error, eps / weight, against
    # the error that it adds to the solution.
    weight = torch.finfo(gram.dtype).eps ** (2 / 3)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    right = unit @ defect.unsqueeze(-1)
    # `solve_ex` does not test for singular matrices, which would wait for the device; the weight excludes them.
    found, _ = torch.linalg.solve_ex(gram + weight * eye, right)
    correction: Tensor = (state.moves + relaxation * state.turns).mT @ (found / length)
    return correction.squeeze(-1)
