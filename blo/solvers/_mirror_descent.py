"""Mirror descent with the entropy: multiplicative steps for positive variables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._settings import require_budget, require_positive
from blo._vectors import dot
from blo.errors import StructureError
from blo.solvers._base import Problem
from blo.solvers._entropy import from_logarithms, lifted
from blo.solvers._iterative import Iterative, valued_gradient


@dataclass(frozen=True)
class MirrorDescent(Iterative):
    """Exponentiated gradient steps `z <- z exp(-step * gradient)`, normalised to the sum of a simplex.

    The method takes `Simplex` (without a cap), `NonNegative`, a `Product` of these, and sets of your own that define
    `from_logarithms`. Every coordinate stays positive. A step changes each coordinate by a factor, so small coordinates
    make small changes. This suits objectives whose curvature is large where coordinates are small: with an entropy
    `tau sum(z log z)` a step of `1 / tau` is exact, while the smallest coordinate limits the step size of projected
    gradients. A start on the boundary is moved into the interior.

    A coordinate that is zero in the solution becomes tiny instead. For implicit gradients of objectives with an
    entropy, give the set `slack=0.0`, so that every coordinate counts as free.

    Source: Beck and Teboulle (Oper. Res. Lett. 2003), Mirror descent and nonlinear projected subgradient methods;
    Bauschke, Bolte and Teboulle (Math. Oper. Res. 2017), for the steps; Kivinen and Warmuth (Inf. Comput. 1997).

    Args:
        step: step size, in units of the logarithm of z over the gradient. None finds one for each lane: the step size
            doubles until the curvature along a step, in the metric of the entropy, exceeds `1/step`. Whenever it does,
            or the objective is not finite, the step is rejected and its size halved. `Unrolled` needs a number.
        max_steps: maximum number of gradient evaluations after the one at the start.
        tol: a lane stops at this residual `|z - project(z - gradient)|`, in the unit of the gradient, or at a smaller
            one where the curvature is small. None makes exactly `max_steps` steps, measures no residual and never waits
            for the device.

    Raises:
        ValueError: for values outside these ranges.
        StructureError: for a `step` that requires grad. The solve raises it for other sets, and without a `step` if its
            steps will be differentiated.
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
                "`MirrorDescent` cannot be unrolled without `step`: the step size that it finds may be too large along "
                "other directions, and then derivatives grow from step to step. Give `step`, at most one over the "
                "curvature in the metric of the entropy: 1 / tau for an objective with tau sum(z log z)."
            )
        # Multiplicative steps cannot leave the boundary, so the start must not lie on it.
        z = lifted(problem.term, z0)
        one = torch.ones_like(z[..., :1])
        return _State(z, problem.gradient(z), z, one * (1.0 if self.step is None else self.step), torch.zeros_like(one))

    def move(self, problem: Problem, state: _State) -> _State:
        # The set's map takes logarithms, because `z * exp(-step * gradient)` itself could overflow.
        logarithms = state.z.log() - state.step * state.slope
        return state._replace(trial=from_logarithms(problem.term, logarithms))

    def look(self, problem: Problem, state: _State) -> _State:
        if self.step is not None:
            return state._replace(z=state.trial, slope=problem.gradient(state.trial))
        slope = valued_gradient(problem, state.trial)
        accepted, roomy = _judged(state, slope)
        # Double the step size until it meets the limit once. Then let it grow slowly, since the curvature may fall.
        found = torch.maximum(state.found, (~roomy).to(state.found))
        grown = torch.where(found > 0, _GROWTH, 1 + roomy.to(state.step))
        return _State(
            z=torch.where(accepted, state.trial, state.z),
            slope=torch.where(accepted, slope, state.slope),
            trial=state.trial,
            step=state.step * torch.where(accepted, grown, 0.5),
            found=found,
        )


#: Growth factor of the step size after a step has been too long.
_GROWTH = 1.05


class _State(NamedTuple):
    """The state of mirror descent: z, slope, trial, and tensors of shape `(*lanes, 1)`.

    Attributes:
        step: step size.
        found: 1 if the step size has reached its limit before, else 0.
    """

    z: Tensor
    slope: Tensor
    trial: Tensor
    step: Tensor
    found: Tensor

    def anew(self, gradient: Callable[[Tensor], Tensor]) -> _State:
        return self._replace(slope=gradient(self.z))


def _judged(state: _State, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether the curvature along a step allows its size, and whether it allows twice this size, `(*lanes, 1)`.

    The curvature is relative to the symmetrised Kullback-Leibler divergence, `<log z - log z', z - z'>`.
    """
    # If the gradient is NaN, both comparisons are false and the step is rejected.
    moved = state.trial - state.z
    bend = dot(slope - state.slope, moved)
    length = dot(state.trial.log() - state.z.log(), moved)
    return state.step * bend <= length, 2 * state.step * bend <= length
