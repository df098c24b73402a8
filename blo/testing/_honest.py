"""Whether the residual that a linear solver reports is that of its x, also where the system is not a good one."""

from __future__ import annotations

import torch
from torch import Tensor

from blo.linsolve import LinearSolution, LinearSolver
from blo.operators import Dense
from blo.testing._suite import Suite, normal


def honest(suite: Suite, found: LinearSolution, matrix: Tensor, b: Tensor, damping: float) -> None:
    """The residual reported is that of x."""
    gap = float(_gap(found, matrix, b, damping).max())
    text = f"the reported |b - (A + damping I) x| / |b| is off by {gap:.2e} more than rounding explains"
    suite.require("the residual is honest", gap == 0, text)


def inconsistent(
    suite: Suite, solver: LinearSolver, generator: torch.Generator, symmetric: bool, damping: float
) -> None:
    """A singular system of which half of b, or more, is out of reach: no solver can do better, or may say so."""
    left, right = (torch.linalg.qr(normal(generator, 3, 5, 5))[0] for _ in range(2))
    right = left if symmetric else right
    matrix = (left * torch.tensor([1.0, 0.8, 0.6, 0.4, 0.0], dtype=torch.float64)) @ right.mT
    matrix = (matrix + matrix.mT) / 2 if symmetric else matrix
    b = (left @ torch.tensor([0.5, -0.5, 0.5, 0.5, 1.0], dtype=torch.float64).unsqueeze(-1)).squeeze(-1)
    found = solver.solve(Dense(matrix, symmetric=symmetric, positive=False), b)
    honest(suite, found, matrix, b, damping)
    if not damping:  # otherwise the system has a solution
        least = float(found.residual.min())
        text = f"the least residual possible is 0.71, but {least:.2e} was reported"  # 1 / sqrt(4 / 4 + 1)
        # Less is reported by rounding where x is huge, but not much less.
        suite.require("a system without a solution is not solved", not least < 0.1, text)


def indefinite(suite: Suite, solver: LinearSolver, generator: torch.Generator, damping: float) -> None:
    """A system that is not positive definite, as at a saddle point: flagged, or else solved as well as reported."""
    q, _ = torch.linalg.qr(normal(generator, 3, 5, 5))
    values = torch.tensor([1.0, 0.8, 0.6, 0.4, -0.5 - damping], dtype=torch.float64)
    matrix, b = (q * values) @ q.mT, normal(generator, 3, 5)
    found = solver.solve(Dense((matrix + matrix.mT) / 2, symmetric=True, positive=False), b)
    gap = _gap(found, matrix, b, damping)
    bad = int(((gap > 0) & ~found.indefinite).sum())
    text = f"{bad} of {gap.numel()} lanes are not flagged, and their residuals are not those reported"
    suite.require("an indefinite system is flagged, or its residual is honest", bad == 0, text)


def _gap(found: LinearSolution, matrix: Tensor, b: Tensor, damping: float) -> Tensor:
    """Return how far the reported residual is from that of x, beyond rounding, shape `lanes`; infinite for a NaN."""
    defect = b - (matrix @ found.x.unsqueeze(-1)).squeeze(-1) - damping * found.x
    size = b.norm(dim=-1)
    truth, reported = defect.norm(dim=-1) / size, found.residual.to(defect)
    # A singular system may have an x so large that the rounding of A x is of the size of b.
    rounding = 1e-8 * (1 + truth) + 100 * torch.finfo(b.dtype).eps * found.x.norm(dim=-1) / size
    gap: Tensor = ((reported - truth).abs() - rounding).nan_to_num(torch.inf).clamp(min=0)
    return gap
