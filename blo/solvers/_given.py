"""A lower solver for a solution that the user already has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from blo._settings import require_positive
from blo.errors import StructureError
from blo.solvers._base import Problem, Solution, Solver


@dataclass(frozen=True)
class Given(Solver):
    """Takes the start `z0` as the solution.

    For a point that a function returns, use `External(function, tol=math.inf)`.

    The implicit gradient at a point z near the solution z* differs from that at z* by about `|z - z*|` times constants
    of the problem. It is computed as if z were a solution, without a warning about the residual.
    `report.lower_residual` gives the residual, and `report.ok` is false if it is more than rounding error. As for every
    solver, the report says whether the adjoint system was solved.

    With the `state` of an earlier call, `value_and_hypergrad` starts from the solution in `state` instead of `z0`. To
    reuse only the adjoint, pass `{"z": weights, "q": out.state["q"]}`.

    Args:
        tol: the point is reported as unconverged if the residual `|z - project(z - gradient)|`, in the unit of the
            gradient, is above this; `math.inf` accepts any point.

    Raises:
        ValueError: if `tol` is not positive.
    """

    takes_start = True

    tol: float = math.inf

    def __post_init__(self) -> None:
        require_positive(self.tol, "Given.tol", "math.inf accepts any point.")

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        """Return `z0`.

        Raises:
            StructureError: if the solve is to be differentiated.
        """
        if problem.recorded:
            raise StructureError("`Given` cannot be unrolled, because it makes no steps. Use gradient=Implicit().")
        # The caller measures the residual, from the gradient that an implicit gradient needs at z0 anyway.
        return Solution(z0.detach(), None, self.tol, steps=0)
