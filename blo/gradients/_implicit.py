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
        linear_solver: `Auto()` by default, which chooses by size, symmetry and definiteness.
        products: how second derivatives are multiplied with vectors. `"reverse"`: one retained graph of the lower
            gradient serves all products. `"forward"`: forward over reverse mode, no graph is kept.
            `"finite-difference"`: central differences of first derivatives, for objectives without a second backward
            pass (fused attention, compiled modules); accurate to about `eps^(2/3)`, see
            `report.product_error`. Fixed-point problems support only `"reverse"`.
        hessian: `"full"`, or `"gauss-newton"` for problems made by `LowerProblem.least_squares`: J'J with the Jacobian
            J of the residuals. It leaves out the curvature of the residuals, so it needs no second derivative of them
            in z and is never indefinite. The hypergradient is then exact only where the residuals vanish or are linear
            in z. J v is computed as `products` says, which must not be `"finite-difference"`.

    Raises:
        StructureError: if `linear_solver` has the wrong type; when the solution is differentiated, if `hessian` is
            `"gauss-newton"` and the problem was not made by `LowerProblem.least_squares`, or if `products` is not
            `"reverse"` for a fixed-point problem.
        ValueError: if `products` or `hessian` has another value, or `hessian="gauss-newton"` is combined with
            `products="finite-difference"`.
    """

    linear_solver: LinearSolver = field(default_factory=Auto)
    products: Products = "reverse"
    hessian: Literal["full", "gauss-newton"] = "full"

    def __post_init__(self) -> None:
        check(self.products)
        if self.hessian not in ("full", "gauss-newton"):
            raise ValueError(f"`hessian` must be 'full' or 'gauss-newton', but is {self.hessian!r}.")
        if self.hessian == "gauss-newton" and self.products == "finite-difference":
            raise ValueError(
                "hessian='gauss-newton' needs exact products with the Jacobian of the residuals, but `products` is "
                "'finite-difference'. Use products='forward', which makes no second backward pass for them, or "
                "hessian='full'."
            )
        if not isinstance(self.linear_solver, LinearSolver):
            raise StructureError(f"`linear_solver` must be like blo.CG(), but is {self.linear_solver!r}.")

    @property
    def tol(self) -> float | None:
        """Relative residual that the linear solver promises; None for an intended approximation."""
        return self.linear_solver.tol

    def model(self, hessian: Operator) -> Operator:
        if self.hessian == "full":
            return hessian
        # H = J'J + sum_i r_i d2 r_i/dz2. Gauss-Newton drops the sum; J'J is positive semidefinite by construction.
        assert isinstance(hessian, Hessian) and hessian.squares is not None
        return Hessian(hessian.squares, positive=True)

    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        # With Gauss-Newton the residual is that of J'J, and does not measure how far J'J is from H.
        found = self.linear_solver.solve(system, b, guess)
        return found if self.hessian == "full" else replace(found, measured=False)
