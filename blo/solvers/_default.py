"""The default lower solver."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._term import Term
from blo.solvers._base import Solver
from blo.solvers._fista import FISTA
from blo.solvers._fixed_point import FixedPoint
from blo.solvers._lbfgs import LBFGS

#: Tolerance of the residual. The error of the solution, and of the hypergradient there, is about this over the smallest
#: curvature.
_TOL = {torch.float64: 1e-11, torch.float32: 1e-5}
_MAX_STEPS = 10_000
#: Maximum number of steps that are differentiated: enough for a condition number of 1e3, and few enough for the memory.
_MAX_REMEMBERED = 2_000
_FIXED_POINT = {dtype: FixedPoint(max_steps=_MAX_STEPS, tol=tol) for dtype, tol in _TOL.items()}
_LBFGS = {dtype: LBFGS(max_steps=_MAX_STEPS, tol=tol, relative=True) for dtype, tol in _TOL.items()}
_FISTA = {dtype: FISTA(max_steps=_MAX_STEPS, tol=tol, relative=True) for dtype, tol in _TOL.items()}
_UNROLLED = {dtype: FISTA(max_steps=_MAX_REMEMBERED, tol=tol, relative=True) for dtype, tol in _TOL.items()}


def default_solver(term: Term, symmetric: bool, z0: Tensor, *, followed: bool = False) -> Solver:
    """Return `LBFGS` without a constraint or with bounds, `FISTA` for other terms, `FixedPoint` without an objective.

    If the steps will be differentiated, every objective gets `FISTA` with at most 2,000 steps, because its steps have
    simple derivatives.

    The solvers stop at a residual of 1e-11 in double and 1e-5 in single precision, times the curvature of the objective
    if that is below 1, and after at most 10,000 steps.

    Args:
        term: the constraint or the penalty.
        symmetric: whether the problem has an objective.
        z0: the start of the solver, shape `(*lanes, n)`, in single or double precision.
        followed: whether the steps will be differentiated.
    """
    if not symmetric:
        return _FIXED_POINT[z0.dtype]
    if followed:
        return _UNROLLED[z0.dtype]
    return (_FISTA if term.bounds(z0) is None else _LBFGS)[z0.dtype]
