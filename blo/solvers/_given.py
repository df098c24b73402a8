"""The solution is known: a loop of the caller's own has found it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from blo._settings import require_positive
from blo.errors import StructureError
from blo.solvers._base import Problem, Solution, Solver


@dataclass(frozen=True)
class Given(Solver):
    """Takes the start `z0` as the solution. For a point that a function returns, use `External(function, tol=inf)`.

    The implicit gradient at a point z near the solution z* differs from that at z* by about `|z - z*|` times constants
    of the problem. It is computed as if z were a solution, without a warning about the residual;
    `report.lower_residual` has it, and `report.ok` is false if it is more than rounding error. An adjoint system that
    is not solved is reported as for every solver.

    With the `state` of an earlier call, `value_and_hypergrad` starts from the solution in it instead of `z0`: pass
    `{"z": weights, "q": out.state["q"]}` to reuse the adjoint alone.

    Args:
        tol: residual `|z - project(z - gradient)|` above which the point is reported as unconverged; `math.inf` accepts
            any point.

    Raises:
        ValueError: if `tol` is not positive.
    """

    tol: float = math.inf

    def __post_init__(self) -> None:
        require_positive(self.tol, "Given.tol", "math.inf takes any point.")

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        """Return `z0`.

        Raises:
            StructureError: when asked to record.
        """
        if problem.recorded:
            raise StructureError("`Given` cannot be unrolled, since it makes no steps. Use gradient=Implicit().")
        # Measured by the caller, from the gradient that an implicit gradient needs there anyway.
        return Solution(z0.detach(), None, self.tol, steps=0)
