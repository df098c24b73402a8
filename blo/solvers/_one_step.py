"""One projected gradient step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from blo._settings import require_positive
from blo.solvers import _direction
from blo.solvers._base import Problem, Solution, Solver


@dataclass(frozen=True)
class OneStep(Solver):
    """`z = project(z0 - step * direction(gradient at z0))`.

    From the anchor of a linearised problem (`LowerProblem.linearize`) of curvature `1/step`, this step is the exact
    solution. With `direction="sign"` it is the attack of Fast-AT (Wong et al., ICLR 2020).

    Args:
        step: step size, in units of z squared over objective for the direction `"gradient"`, of z for the others.
        direction: `"gradient"`, `"sign"`, `"normalized"` (each lane by its own 2-norm) or `"coordinate"` (only the
            largest coordinate of each lane that no bound blocks).

    Raises:
        ValueError: for a step that is not positive or an unknown direction.
        StructureError: for a step that requires grad.
    """

    step: float
    direction: _direction.Direction = "gradient"

    def __post_init__(self) -> None:
        _direction.check(self.direction)
        require_positive(self.step, "step")

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        # No residual is measured: that would take a second gradient, and one step is not expected to converge.
        slope = _direction.scaled(problem, z0, problem.gradient(z0), self.direction)
        return Solution(problem.prox(z0 - self.step * slope, self.step), residual=None, tol=None, steps=1)
