"""The linear solver that suits the system."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blo._settings import require_count, require_nonnegative, require_tolerance
from blo.linsolve._base import LinearSolution, LinearSolver, all_true, damped
from blo.linsolve._cg import CG
from blo.linsolve._contraction import contracted
from blo.linsolve._direct import Direct
from blo.linsolve._gmres import GMRES
from blo.linsolve._minres import MINRES
from blo.linsolve._precondition import Preconditioning
from blo.operators import Operator

#: Most entries of all lanes' matrices that are factorised: 128 MiB in double precision.
_ENTRIES = 2**24
#: Most unknowns for a factorisation where the operator is not symmetric. An equilibrium seldom needs more products.
_FEW = 32
#: Most products of a series before GMRES is tried, which needs fewer of them and more of everything else.
_SERIES = 48
#: Share of the tolerance that GMRES is asked for in place of a factorisation, which leaves a residual of rounding.
_CLOSER = 1e-2


@dataclass(frozen=True, eq=False)
class Auto(LinearSolver):
    """Picks by size, symmetry and definiteness, and says in `LinearSolution.method` what it picked.

    * `Direct` for at most `direct` unknowns, if the matrices of all lanes together hold no more than 2^24 entries:
      as many products as unknowns.
    * For an operator that is not declared symmetric, as that of an equilibrium, `Direct` for at most 32 unknowns. For
      more, the series of `Neumann` with a step of 1, while every lane's residual shrinks fast enough for 48 products to
      do; then `GMRES` from there.
    * `CG` otherwise. Lanes in which it meets curvature that is not positive are reported as `indefinite` all the same,
      and go on with `MINRES`.
    * `Direct` after these, for up to `8 * direct` unknowns, if some lane is not solved in as many iterations as there
      are unknowns: its condition is bad, and more iterations would cost more than a factorisation.

    Attributes:
        max_iter: most iterations of each iterative solver.
        tol: relative residual at which a lane of an iterative solver stops; None for `max_iter` iterations, as an
            approximation by choice.
        damping: d in `(A + d I) x = b`.
        direct: most unknowns of a lane for a factorisation; 0 for none.
        preconditioner: as for `CG`; a factorisation has no use for it.

    Raises:
        ValueError: if `tol`, `damping` or `direct` is negative, or `max_iter` is below 1.
    """

    max_iter: int = 1000
    tol: float | None = 1e-10
    damping: float = 0.0
    direct: int = 256
    preconditioner: Preconditioning | None = None

    def __post_init__(self) -> None:
        require_tolerance(self.tol, "Auto.tol")
        require_nonnegative(self.damping, "Auto.damping")
        require_nonnegative(self.direct, "Auto.direct")
        require_count(self.max_iter, "Auto.max_iter", "For no solve, use `Zero`.")

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        n = b.shape[-1]
        fits = b.numel() * n <= _ENTRIES
        if n <= (self.direct if operator.symmetric else min(self.direct, _FEW)) and fits:
            return replace(Direct(self.damping).solve(operator, b), method=f"Auto: Direct (n = {n})")
        fits = fits and n <= 8 * self.direct
        most = min(self.max_iter, n) if fits else self.max_iter
        if not operator.symmetric:
            found = self._unsymmetric(operator, b, x0, most)
        else:
            found = CG(most, self.tol, self.damping, self.preconditioner).solve(operator, b, x0)
            found = replace(found, method=f"Auto: CG (n = {n})")
            if not all_true(~found.indefinite):
                found = self._finish(found, operator, b)
        return self._factorised(found, operator, b) if fits else found

    def _unsymmetric(self, operator: Operator, b: Tensor, x0: Tensor | None, most: int) -> LinearSolution:
        """Sum the series up where it is fast, and go on with GMRES where it is not."""
        n, tol = b.shape[-1], self.tol
        before: Tensor | int = 0
        if tol is not None and self.preconditioner is None:
            series = contracted(damped(operator, self.damping), b, x0, tol=tol, most=min(_SERIES, most))
            if all_true(self._solved(series)):
                return replace(series, method=f"Auto: Neumann (n = {n}, not symmetric)")
            x0, before = series.x, series.iterations
        if tol is not None and n <= self.direct:
            tol = _CLOSER * tol
        found = GMRES(most, tol, self.damping, preconditioner=self.preconditioner).solve(operator, b, x0)
        return replace(found, iterations=before + found.iterations, method=f"Auto: GMRES (n = {n}, not symmetric)")

    def _solved(self, found: LinearSolution) -> Tensor:
        tol: Any = self.tol  # a solver may have made it one of each lane
        return found.converged(tol.squeeze(-1) if isinstance(tol, Tensor) else tol)

    def _factorised(self, found: LinearSolution, operator: Operator, b: Tensor) -> LinearSolution:
        """Factorise where iterations did not end, and keep what is better in each lane."""
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
        """Solve the lanes that conjugate gradients gave up, from where it stopped, or from zero where that is nearer.

        Across curvature near zero it has gone far: all that way would be lost to rounding.
        """
        bent = found.indefinite.unsqueeze(-1)
        start = torch.where(found.residual.unsqueeze(-1) < 1, found.x, 0.0)
        minres = MINRES(self.max_iter, self.tol, self.damping, self.preconditioner)
        rest = minres.solve(operator, torch.where(bent, b, 0.0), start)
        return LinearSolution(
            x=torch.where(bent, rest.x, found.x),
            residual=torch.where(found.indefinite, rest.residual, found.residual),
            iterations=found.iterations + rest.iterations,
            indefinite=found.indefinite,
            method=f"Auto: CG, then MINRES where it is indefinite (n = {b.shape[-1]})",
        )
