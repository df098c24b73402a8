"""The implicit function theorem with the true Hessian and a linear solver."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from blo.errors import StructureError
from blo.gradients._products import Products, check
from blo.gradients._stationary import Stationary
from blo.linsolve import Auto, LinearSolution, LinearSolver
from blo.operators import Operator, Restricted


@dataclass(frozen=True)
class Implicit(Stationary):
    """Solves the adjoint system with Hessian-vector products. iMAML is this with CG, OptNet with Direct.

    Args:
        linear_solver: `Auto()` by default, which picks by size, symmetry and definiteness.
        products: how second derivatives are multiplied with vectors. `"reverse"`: one retained graph of the lower
            gradient serves all products. `"forward"`: forward over reverse mode, no graph is kept.
            `"finite-difference"`: central differences of first derivatives, for objectives without a second backward
            pass (fused attention, compiled or checkpointed modules); known to `eps^(2/3)`, see
            `report.product_error`. For equilibria only `"reverse"`.

    Raises:
        StructureError: if `linear_solver` has the wrong type.
        ValueError: for other products.
    """

    linear_solver: LinearSolver = field(default_factory=Auto)
    products: Products = "reverse"

    def __post_init__(self) -> None:
        check(self.products)
        if not isinstance(self.linear_solver, LinearSolver):
            raise StructureError(f"`linear_solver` must be like blo.CG(), but is {self.linear_solver!r}.")

    @property
    def tol(self) -> float | None:
        """Relative residual that the linear solver was asked for; None for an approximation by choice."""
        return self.linear_solver.tol

    def model(self, hessian: Operator) -> Operator:
        return hessian

    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        return self.linear_solver.solve(system, b, guess)
