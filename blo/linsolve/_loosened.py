"""Linear solvers with a larger tolerance, which stop earlier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from blo.linsolve._auto import Auto
from blo.linsolve._base import LinearSolver
from blo.linsolve._cg import CG
from blo.linsolve._gmres import GMRES
from blo.linsolve._minres import MINRES


def loosened(solver: LinearSolver, tol: Tensor) -> LinearSolver:
    """Return the solver with each lane's tolerance raised to at least `tol`, shape `(*lanes, 1)`.

    Solvers other than `Auto`, `CG`, `GMRES` and `MINRES`, and those without a tolerance, are returned as they are.
    """
    if not isinstance(solver, (Auto, CG, GMRES, MINRES)) or solver.tol is None:
        return solver
    options: dict[str, Any] = {"tol": torch.clamp(tol, min=solver.tol)}
    return replace(solver, **options)
