"""A lower solver that calls a function of the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from blo import tree
from blo._arguments import require_function
from blo._settings import require_positive
from blo._types import Tree
from blo.errors import StructureError
from blo.solvers._base import Problem, Solution, Solver


@dataclass(frozen=True)
class External(Solver):
    """Calls `function(theta, z0) -> z`, for example a wrapper of SciPy, and measures the residual of the result.

    Args:
        function: takes theta and the start as trees of constants and returns a tree like `z0`. Implicit strategies
            differentiate its result; nothing differentiates through the call.
        tol: the solve is reported as unconverged if the residual `|z - project(z - gradient)|`, in the unit of the
            gradient, is above this, or above a smaller number where the curvature is small. `math.inf` accepts any
            point; if the point is `z0` itself, use `Given`.

    Raises:
        StructureError: if `function` is not callable.
        ValueError: if `tol` is not positive.
    """

    function: Callable[[Tree, Tree], Tree]
    tol: float = 1e-6

    def __post_init__(self) -> None:
        require_function(self.function, "function", "theta", "z0")
        require_positive(self.tol, "External.tol", "math.inf accepts any point.")

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        """Call the function.

        Raises:
            StructureError: if the solve is to be differentiated, under `vmap`, or if the result is not like `z0`.
        """
        if problem.recorded:
            raise StructureError(
                "`External` cannot be unrolled, because blo does not see its steps. Use gradient=Implicit()."
            )
        layout = problem.layout
        # Each `vmap` adds a lane axis to z0 that the layout does not have.
        if z0.ndim != len(layout.lanes) + 1:
            raise StructureError("`External` cannot run under vmap, because its function is not a torch function.")
        found = self.function(tree.detach(problem.theta), layout.unravel(z0))
        # A copy: the function may return theta itself, which an optimiser changes in place.
        z = layout.ravel(found, "the result of External's function").detach().clone()
        # The caller measures the residual: an implicit gradient at z needs the gradient of the objective there anyway.
        return Solution(z, None, self.tol, steps=0)
