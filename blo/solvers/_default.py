"""The solver that a problem gets when none is asked for."""

from __future__ import annotations

import torch

from blo._term import Term
from blo.sets import Box, Free, NonNegative, Product
from blo.solvers._base import Solver
from blo.solvers._fista import FISTA
from blo.solvers._fixed_point import FixedPoint
from blo.solvers._lbfgs import LBFGS

#: Residual to reach. The error of a solution, and of the hypergradient there, is this over the least curvature.
_TOL = {torch.float64: 1e-11, torch.float32: 1e-5}
_MAX_STEPS = 10_000
#: Steps to remember at most: enough for a condition of 1e3, and few enough for the memory.
_MAX_REMEMBERED = 2_000


def default_solver(term: Term, symmetric: bool, dtype: torch.dtype, *, followed: bool = False) -> Solver:
    """Return `LBFGS` for no constraint or bounds, `FISTA` for other terms, `FixedPoint` where there is no objective.

    Where one differentiates through the steps, `FISTA` serves all objectives, since its steps have simple derivatives,
    and makes 2,000 at most.

    They stop at a residual of 1e-11 in double and 1e-5 in single precision, times the curvature of an objective where
    that is below 1, and after 10,000 steps at the latest.

    Args:
        term: the constraint or the penalty.
        symmetric: the problem has an objective.
        dtype: that of the lower variable.
        followed: the solver is differentiated through.
    """
    tol = _TOL.get(dtype, 1e-2)
    if not symmetric:
        return FixedPoint(max_steps=_MAX_STEPS, tol=tol)
    if _bounds_coordinates(term) and not followed:
        return LBFGS(max_steps=_MAX_STEPS, tol=tol, relative=True)
    return FISTA(max_steps=_MAX_REMEMBERED if followed else _MAX_STEPS, tol=tol, relative=True)


def _bounds_coordinates(term: Term) -> bool:
    if isinstance(term, Product):
        return all(_bounds_coordinates(part) for part in term.sets)
    return isinstance(term, Free | Box | NonNegative)
