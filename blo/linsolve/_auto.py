"""A linear solver that chooses a method for each system."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo._settings import require_count, require_nonnegative, require_tolerance
from blo.linsolve._base import LinearSolution, LinearSolver, damped, raised
from blo.linsolve._cg import CG
from blo.linsolve._contraction import contracted
from blo.linsolve._direct import Direct
from blo.linsolve._gmres import GMRES
from blo.linsolve._minres import MINRES
from blo.linsolve._precondition import Preconditioning
from blo.linsolve._space import InnerProduct, Space
from blo.operators import Operator

#: The largest number of matrix entries, over all lanes, to factorise: 128 MiB in double precision.
_ENTRIES = 2**24
#: The largest number of unknowns to factorise if the operator is not symmetric: an equilibrium rarely needs more
#: products than this.
_FEW = 32
#: The largest number of products of the series. GMRES needs fewer products, but more work and memory for each.
_SERIES = 48
#: GMRES in place of a factorisation, whose residual would be rounding error, solves to this share of the tolerance.
_CLOSER = 1e-2


@dataclass(frozen=True, eq=False)
class Auto(LinearSolver):
    """Chooses a method by size, symmetry and definiteness, and names it in `LinearSolution.method`.

    * `Direct` for at most `direct` unknowns, if the matrices of all lanes together hold no more than 2^24 entries. It
      takes as many products as there are unknowns.
    * For an operator that is not declared symmetric, as for an equilibrium, `Direct` for at most 32 unknowns. For more,
      the Neumann series with step 1 while the residual of every lane falls fast enough to converge in 48 products; then
      `GMRES`, started from the sum.
    * `CG` otherwise. Lanes in which it finds non-positive curvature continue with `MINRES`, and are still reported as
      `indefinite`.
    * `Direct` after these, for up to `8 * direct` unknowns, if a lane has not converged in `max_iter` iterations,
      or in as many as there are unknowns: then it is ill-conditioned, and more would cost more than a factorisation.

    Attributes:
        max_iter: maximum number of iterations of each iterative solver.
        tol: relative residual at which a lane of an iterative solver stops; None runs `max_iter` iterations (at most n
            where `Direct` may follow), as an intended approximation.
        damping: d in `(A + d I) x = b`.
        direct: maximum number of unknowns of a lane for which `Direct` is tried first; 0 never factorises.
        preconditioner: as for `CG`; a factorisation ignores it.
        inner: as for `CG`; with an inner product of its own, `Auto` never factorises.

    Raises:
        ValueError: if `tol`, `damping` or `direct` is negative, or `max_iter` is below 1.
        StructureError: by `solve`, for half precision, where it would use `Direct` or `GMRES`.
    """

    max_iter: int = 1000
    tol: float | None = 1e-10
    damping: float = 0.0
    direct: int = 256
    preconditioner: Preconditioning | None = None
    inner: InnerProduct | None = None

    def __post_init__(self) -> None:
        require_tolerance(self.tol, "Auto.tol")
        require_nonnegative(self.damping, "Auto.damping")
        require_nonnegative(self.direct, "Auto.direct")
        require_count(self.max_iter, "Auto.max_iter", "To solve no system, use the strategy `Zero`.")

    def relaxed(self, tol: Tensor) -> LinearSolver:
        return replace(self, tol=raised(self.tol, tol))

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        n = b.shape[-1]
        fits = b.numel() * n <= _ENTRIES and self.inner is None
        if n <= (self.direct if operator.symmetric else min(self.direct, _FEW)) and fits:
            return replace(Direct(self.damping).solve(operator, b), method=f"Auto: Direct (n = {n})")
        fits = fits and n <= 8 * self.direct
        most = min(self.max_iter, n) if fits else self.max_iter
        if not operator.symmetric:
            found = self._unsymmetric(operator, b, x0, most)
        else:
            found = CG(most, self.tol, self.damping, self.preconditioner, self.inner).solve(operator, b, x0)
            found = replace(found, method=f"Auto: CG (n = {n})")
            if not all_true(~found.indefinite):
                found = self._finish(found, operator, b)
        return self._factorised(found, operator, b) if fits else found

    def _unsymmetric(self, operator: Operator, b: Tensor, x0: Tensor | None, most: int) -> LinearSolution:
        """Sum the Neumann series if it converges fast, and continue with GMRES otherwise."""
        n, tol = b.shape[-1], self.tol
        before: Tensor | int = 0
        if tol is not None and self.preconditioner is None:
            apply, most_products = damped(operator, self.damping), min(_SERIES, most)
            series = contracted(apply, b, x0, tol=tol, most=most_products, space=Space(self.inner))
            if all_true(self._solved(series)):
                return replace(series, method=f"Auto: Neumann (n = {n}, not symmetric)")
            x0, before = series.x, series.iterations
        if tol is not None and n <= self.direct and self.inner is None:
            tol = _CLOSER * tol
        found = GMRES(most, tol, self.damping, preconditioner=self.preconditioner, inner=self.inner).solve(
            operator, b, x0
        )
        return replace(found, iterations=before + found.iterations, method=f"Auto: GMRES (n = {n}, not symmetric)")

    def _solved(self, found: LinearSolution) -> Tensor:
        tol: Any = self.tol  # `relaxed` makes it a tensor with one tolerance for each lane
        return found.converged(tol.squeeze(-1) if isinstance(tol, Tensor) else tol)

    def _factorised(self, found: LinearSolution, operator: Operator, b: Tensor) -> LinearSolution:
        """Factorise if a lane has not converged, and keep the better solution in each lane."""
        solved = self._solved(found)
        if all_true(solved):
            return found
        direct = Direct(self.damping).solve(operator, b)
        better = ~solved & ~(direct.residual >= found.residual)
        return LinearSolution(
            x=torch.where(better.unsqueeze(-1), direct.x, found.x),
            residual=torch.where(better, direct.residual, found.residual),
            iterations=found.iterations + direct.iterations * ~solved,
            indefinite=found.indefinite | (better & direct.indefinite),
            method=f"{found.method}, then Direct where it did not converge",
        )

    def _finish(self, found: LinearSolution, operator: Operator, b: Tensor) -> LinearSolution:
        """Solve the lanes that CG left as indefinite, from its iterate, or from zero if that has a smaller residual.

        Along a direction of nearly zero curvature CG takes a very long step. A correction to such an iterate would lose
        the solution to rounding.
        """
        bent = found.indefinite.unsqueeze(-1)
        start = torch.where(found.residual.unsqueeze(-1) < 1, found.x, 0.0)
        minres = MINRES(self.max_iter, self.tol, self.damping, self.preconditioner, self.inner)
        rest = minres.solve(operator, torch.where(bent, b, 0.0), start)
        return LinearSolution(
            x=torch.where(bent, rest.x, found.x),
            residual=torch.where(found.indefinite, rest.residual, found.residual),
            iterations=found.iterations + rest.iterations,
            indefinite=found.indefinite,
            method=f"Auto: CG, then MINRES where it is indefinite (n = {b.shape[-1]})",
        )
