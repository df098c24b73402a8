"""The implicit function theorem with the true Hessian and a linear solver."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from blo.errors import StructureError
from blo.gradients._products import Products, check
from blo.gradients._stationary import Stationary
from blo.linsolve import Auto, LinearSolution, LinearSolver
from blo.operators import Hessian, Operator, Restricted


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
        hessian: `"full"`, or for `LowerProblem.least_squares` an approximation of it, `"gauss-newton"`: J'J with the
            Jacobian J of the residuals. It leaves out the curvature of the residuals, needs none of their second
            derivatives in z, and is never indefinite. The gradient is then exact only where residuals vanish or are
            linear in z.

    Raises:
        StructureError: if `linear_solver` has the wrong type; by the derivative, with `"gauss-newton"` for any other
            problem.
        ValueError: for other products, or another Hessian.
    """

    linear_solver: LinearSolver = field(default_factory=Auto)
    products: Products = "reverse"
    hessian: Literal["full", "gauss-newton"] = "full"

    def __post_init__(self) -> None:
        check(self.products)
        if self.hessian not in ("full", "gauss-newton"):
            raise ValueError(f"`hessian` must be 'full' or 'gauss-newton', but is {self.hessian!r}.")
        if not isinstance(self.linear_solver, LinearSolver):
            raise StructureError(f"`linear_solver` must be like blo.CG(), but is {self.linear_solver!r}.")

    @property
    def tol(self) -> float | None:
        """Relative residual that the linear solver was asked for; None for an approximation by choice."""
        return self.linear_solver.tol

    def model(self, hessian: Operator) -> Operator:
        if self.hessian == "full":
            return hessian
        assert isinstance(hessian, Hessian) and hessian.squares is not None
        return Hessian(hessian.squares, positive=True)

    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        found = self.linear_solver.solve(system, b, guess)
        return found if self.hessian == "full" else replace(found, measured=False)
