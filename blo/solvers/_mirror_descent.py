"""Mirror descent with the entropy: steps multiply coordinates instead of adding to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._settings import require_budget, require_positive
from blo.errors import StructureError
from blo.solvers._base import Problem
from blo.solvers._entropy import exponentials, lifted
from blo.solvers._iterative import Iterative, valued_gradient


@dataclass(frozen=True)
class MirrorDescent(Iterative):
    """Exponentiated gradient steps `z <- z exp(-step * gradient)`, scaled to the sum of a simplex.

    For `Simplex` (without a cap), `NonNegative` and a `Product` of these. Every coordinate stays positive, and a step
    changes all by factors of one size, which suits objectives whose curvature is large where coordinates are small:
    with an entropy `tau sum(z log z)` a step of `1 / tau` is exact, where the steps of projected gradients are held
    down by the smallest coordinate. A start on the boundary is moved off it.

    A solution has tiny coordinates there rather than zeros. For implicit gradients of objectives with an entropy give
    the set `slack=0.0`, so that they all count as free.

    Source: Beck and Teboulle (Oper. Res. Lett. 2003), Mirror descent and nonlinear projected subgradient methods;
    Bauschke, Bolte and Teboulle (Math. Oper. Res. 2017), for the steps; Kivinen and Warmuth (Inf. Comput. 1997).

    Args:
        step: step size, in units of z's logarithm over the gradient. None finds one for each lane: it doubles until
            the curvature measured along a step, in the metric of the entropy, exceeds `1/step`, and halves, taking
            that step back, whenever it does or the objective has no value. To unroll, give a number.
        max_steps: most gradient evaluations after the one at the start.
        tol: residual `|z - project(z - gradient)|` at which a lane stops; a smaller one where the curvature is small.
            None makes exactly `max_steps` steps, measures nothing and never waits for the device.

    Raises:
        ValueError: for values outside these ranges.
        StructureError: for a `step` that requires grad; by the solve, for other sets, and without a `step` when its
            steps are to be differentiated.
    """

    step: float | None = None
    max_steps: int = 1000
    tol: float | None = 1e-8

    def __post_init__(self) -> None:
        require_budget(self.max_steps, self.tol)
        if self.step is not None:
            require_positive(self.step, "step")

    def start(self, problem: Problem, z0: Tensor) -> _State:
        if self.step is None and (problem.followed or problem.recorded):
            raise StructureError(
                "`MirrorDescent` finds its steps along the way, and derivatives of steps that are too long for a "
                "direction it does not take grow. To unroll, give `step`, at most one over the curvature in the "
                "metric of the entropy: 1 / tau for an objective with tau sum(z log z)."
            )
        z = lifted(problem.term, z0, "MirrorDescent")
        one = torch.ones_like(z[..., :1])
        return _State(z, problem.gradient(z), z, one * (1.0 if self.step is None else self.step), torch.zeros_like(one))

    def move(self, problem: Problem, state: _State) -> _State:
        logarithms = state.z.log() - state.step * state.slope
        return state._replace(trial=exponentials(problem.term, logarithms, "MirrorDescent"))

    def look(self, problem: Problem, state: _State) -> _State:
        if self.step is not None:
            return state._replace(z=state.trial, slope=problem.gradient(state.trial))
        slope = valued_gradient(problem, state.trial)
        accepted, roomy = _judged(state, slope)
        found = torch.maximum(state.found, (~roomy).to(state.found))
        grown = torch.where(found > 0, _GROWTH, 1 + roomy.to(state.step))
        return _State(
            z=torch.where(accepted, state.trial, state.z),
            slope=torch.where(accepted, slope, state.slope),
            trial=state.trial,
            step=state.step * torch.where(accepted, grown, 0.5),
            found=found,
        )


#: Growth of the step once it has been too long.
_GROWTH = 1.05


class _State(NamedTuple):
    """Beside z, slope and trial, shapes `(*lanes, 1)`.

    Attributes:
        step: step size.
        found: 1 where a step has met its limit, else 0.
    """

    z: Tensor
    slope: Tensor
    trial: Tensor
    step: Tensor
    found: Tensor

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))


def _judged(state: _State, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Tell where the curvature along a step allows it, and where one of twice the size; shapes `(*lanes, 1)`.

    It is measured in units of the symmetrised divergence, `<log z - log z', z - z'>`.
    """
    moved = state.trial - state.z
    bend = ((slope - state.slope) * moved).sum(-1, keepdim=True)
    length = ((state.trial.log() - state.z.log()) * moved).sum(-1, keepdim=True)
    return state.step * bend <= length, 2 * state.step * bend <= length
