"""Conformance of linear solvers: true residuals, exact zeros, and lanes that do not affect each other."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blo.linsolve import LinearSolver
from blo.operators import Dense
from blo.testing._honest import honest, inconsistent, indefinite
from blo.testing._suite import Conformance, Suite, normal


def check_linear_solver(solver: LinearSolver, *, symmetric: bool = True, seed: int = 0) -> Conformance:
    """Check a linear solver on small dense systems in double and single precision.

    A solver whose `tol` is None counts as an intended approximation: the residual that it reports must be the true one,
    but need not be small. A field named `damping` is tested as well.

    Args:
        solver: the solver.
        symmetric: whether it requires symmetric positive definite operators; otherwise they are not symmetric.
        seed: of the random systems.

    Raises:
        AssertionError: if a property fails; the message names it.
    """
    suite, generator = Suite(type(solver).__name__), torch.Generator().manual_seed(seed)
    damping = float(getattr(solver, "damping", 0.0))
    exact = solver.tol is not None
    for n in (1, 2, 5):
        for lanes in ((), (1,), (3,)):
            matrix, b = _system(generator, lanes, n, symmetric), normal(generator, *lanes, n)
            _solves(suite, solver, matrix, b, damping, exact)
    matrix, b = _system(generator, (3,), 5, symmetric), normal(generator, 3, 5)
    if is_dataclass(solver) and any(field.name == "damping" for field in fields(solver)):
        damped: Any = replace(solver, damping=damping + 0.7)
        found = damped.solve(_dense(matrix, symmetric), b)
        honest(suite, found, matrix, b, damping + 0.7)
        if exact:
            truth = torch.linalg.solve(matrix + (damping + 0.7) * torch.eye(5).double(), b)
            suite.near("damping is part of the system", found.x, truth, 1e-5, "the damped solution")
    _zero(suite, solver, matrix, b, symmetric)
    _lanes(suite, solver, matrix, b, symmetric)
    _guess(suite, solver, matrix, b, symmetric, exact)
    for size in (1e-30, 1e30):
        scaled = solver.solve(_dense(matrix, symmetric), size * b).x / size
        text = f"the solution for {size:.0e} times b"
        suite.near("the size of b does not matter", scaled, solver.solve(_dense(matrix, symmetric), b).x, 1e-6, text)
    broken = b.clone()
    broken[0, 0] = torch.nan
    found = solver.solve(_dense(matrix, symmetric), broken)
    late = not bool(found.converged(solver.tol)[0])
    suite.require("a NaN never counts as converged", late, "the lane with a NaN in b has converged")
    single = solver.solve(_dense(matrix.float(), symmetric), b.float())
    suite.require("dtype is kept", single.x.dtype == torch.float32, f"float32 gave {single.x.dtype}")
    inconsistent(suite, solver, generator, symmetric, damping)
    if symmetric:
        indefinite(suite, solver, generator, damping)
    return suite.report()


def _system(generator: torch.Generator, lanes: tuple[int, ...], n: int, symmetric: bool) -> Tensor:
    """Return matrices with eigenvalues, or singular values, from 0.2 to 1."""
    q, _ = torch.linalg.qr(normal(generator, *lanes, n, n))
    values = torch.linspace(1.0, 0.2, n, dtype=torch.float64)
    half = 0.5 * (q * values) @ q.mT
    skew = normal(generator, *lanes, n, n) * (0.0 if symmetric else 0.3)
    matrix: Tensor = half + half.mT + (skew - skew.mT)
    return matrix


def _dense(matrix: Tensor, symmetric: bool) -> Dense:
    return Dense(matrix, symmetric=symmetric, positive=symmetric)


def _solves(suite: Suite, solver: LinearSolver, matrix: Tensor, b: Tensor, damping: float, exact: bool) -> None:
    symmetric = bool((matrix == matrix.mT).all())
    found = suite.untouched("arguments are not modified", solver.solve, (_dense(matrix, symmetric), b))
    shapes = {tuple(part.shape) for part in (found.residual, found.iterations, found.indefinite)}
    kept = found.x.shape == b.shape and shapes == {tuple(b.shape[:-1])}
    text = f"b {tuple(b.shape)} gave x {tuple(found.x.shape)} and statistics of shape {shapes}"
    suite.require("x is like b, and there is one statistic per lane", kept, text)
    kinds = found.iterations.dtype == torch.int64 and found.indefinite.dtype == torch.bool
    text = f"they are {found.iterations.dtype} and {found.indefinite.dtype}"
    suite.require("iterations are integers and flags are booleans", kinds, text)
    honest(suite, found, matrix, b, damping)
    if exact:
        late = int((~found.converged(solver.tol)).sum())
        text = f"{late} of {found.residual.numel()} lanes have not, residual {float(found.residual.max()):.2e}"
        name = "a scalar unknown is solved" if b.shape[-1] == 1 else "well-conditioned systems are solved"
        suite.require(name, late == 0, text)
        truth = torch.linalg.solve(matrix + damping * torch.eye(b.shape[-1]).to(b), b)
        suite.near(name, found.x, truth, max(1e-8, 50 * (solver.tol or 0.0)), "the solution")
        suite.require("nothing definite is called indefinite", not bool(found.indefinite.any()), "a lane is flagged")


def _zero(suite: Suite, solver: LinearSolver, matrix: Tensor, b: Tensor, symmetric: bool) -> None:
    rhs = b.clone()
    rhs[1] = 0.0
    for x0 in (None, torch.ones_like(b)):
        found = solver.solve(_dense(matrix, symmetric), rhs, x0)
        zero = not bool(found.x[1].any()) and not bool(found.residual[1].any())
        text = f"it gave x = {found.x[1].tolist()} with residual {float(found.residual[1]):.2e}"
        suite.require("a zero right-hand side gives exactly zero", zero, text)


def _lanes(suite: Suite, solver: LinearSolver, matrix: Tensor, b: Tensor, symmetric: bool) -> None:
    hard = matrix.clone()
    hard[1] = torch.diag(torch.logspace(0, -6, b.shape[-1], dtype=torch.float64))
    both = solver.solve(_dense(hard, symmetric), b)
    for lane in (0, 2):
        alone = solver.solve(_dense(matrix[lane], symmetric), b[lane])
        text = "a lane beside a hard one, against itself alone,"
        suite.near("lanes stop on their own", both.x[lane], alone.x, 1e-10, text)
    order = torch.tensor([2, 0, 1])
    turned = solver.solve(_dense(hard[order], symmetric), b[order])
    suite.near("permuting the lanes permutes the answer", turned.x, both.x[order], 1e-10, "the permuted answer")

    def alone_under_vmap(matrix: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        found = solver.solve(_dense(matrix, symmetric), b)
        return found.x, found.residual

    mapped: Any = torch.vmap(alone_under_vmap)(matrix, b)
    batch = solver.solve(_dense(matrix, symmetric), b)
    suite.near("vmap gives what a batch gives", mapped[0], batch.x, 1e-8, "the mapped solution")


def _guess(suite: Suite, solver: LinearSolver, matrix: Tensor, b: Tensor, symmetric: bool, exact: bool) -> None:
    operator = _dense(matrix, symmetric)
    first = solver.solve(operator, b)
    guess = first.x.clone()
    again = suite.untouched("arguments are not modified", solver.solve, (operator, b, guess))
    if exact:
        suite.near("a guess does not change the answer", again.x, first.x, 1e-7, "the solution from its own guess")
        more = int((again.iterations - first.iterations).max())
        suite.require("a good guess costs no iterations", more <= 0, f"it takes {more} more")
