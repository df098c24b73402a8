"""The solution is there already: a loop of the caller's own has found it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from blo._arguments import require_function
from blo._settings import require_positive
from blo._types import Tree
from blo.errors import StructureError
from blo.solvers._base import Problem, Solution, Solver
from blo.solvers._external import result


@dataclass(frozen=True)
class Given(Solver):
    """Solves nothing: takes the start `z0` as the solution, or what a function returns.

    The implicit gradient at a point z beside the solution z* differs from that at z* by about the distance `|z - z*|`
    times constants of the problem. It is computed as if z were a solution, so nothing is said about a residual;
    `report.lower_residual` tells it, and `report.ok` is false where it is more than rounding. What else is wrong, as an
    adjoint system that is not solved, is reported as for every solver.

    With the `state` of an earlier call, `value_and_hypergrad` starts from the solution in it instead of `z0`: pass
    `{"z": weights, "q": out.state["q"]}` to hand on the adjoint alone.

    Args:
        function: gets theta and `z0` as trees of constants and returns a tree like `z0`; None for `z0` itself.
        tol: residual `|z - project(z - gradient)|` above which the point is reported as unconverged; `math.inf` takes
            any point.

    Raises:
        StructureError: if `function` is not callable.
        ValueError: if `tol` is not positive.
    """

    function: Callable[[Tree, Tree], Tree] | None = None
    tol: float = math.inf

    def __post_init__(self) -> None:
        if self.function is not None:
            require_function(self.function, "function", "theta", "z0")
        require_positive(self.tol, "Given.tol", "math.inf takes any point.")

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        """Take the point.

        Raises:
            StructureError: when asked to record, or when the function's result is not like `z0`.
        """
        if problem.recorded:
            raise StructureError("`Given` cannot be unrolled, since it makes no steps. Use gradient=Implicit().")
        z = z0.detach() if self.function is None else result(self.function, "Given", problem, z0)
        # Measured by the caller, from the gradient that an implicit gradient needs there anyway.
        return Solution(z, None, self.tol, steps=0)
