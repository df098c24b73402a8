"""A lower solver that is somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from blo import tree
from blo._arguments import require_function
from blo._types import Tree
from blo.errors import StructureError
from blo.solvers._base import Problem, Solution, Solver


@dataclass(frozen=True)
class External(Solver):
    """Calls `function(theta, z0) -> z`, for example a wrapper of SciPy; what it returned is measured.

    Args:
        function: gets theta and the start as trees of constants and returns a tree like `z0`. Its result is
            differentiated by implicit strategies alone, never through the call.
        tol: residual `|z - project(z - gradient)|` above which the solve is reported as unconverged; a smaller one
            where the curvature is small. `math.inf` accepts any point; if it is `z0` itself, use `Given`.

    Raises:
        StructureError: if `function` is not callable.
    """

    function: Callable[[Tree, Tree], Tree]
    tol: float = 1e-6

    def __post_init__(self) -> None:
        require_function(self.function, "function", "theta", "z0")

    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        """Call the function.

        Raises:
            StructureError: when asked to record, or when the result is not like `z0`.
        """
        if problem.recorded:
            raise StructureError(
                "`External` cannot be unrolled, since its steps are not seen. Use gradient=Implicit()."
            )
        layout = problem.layout
        if z0.ndim != len(layout.lanes) + 1:
            raise StructureError("`External` cannot run under vmap, since its function is not a torch function.")
        found = self.function(tree.detach(problem.theta), layout.unravel(z0))
        z = layout.ravel(found, "the result of External's function").detach()
        # Measured by the caller: an implicit gradient at z needs the gradient of the objective there anyway.
        return Solution(z, None, self.tol, steps=0)
