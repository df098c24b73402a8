"""The inverse of an operator taken for a multiple of the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blo._settings import require_nonnegative
from blo.linsolve._base import LinearSolution, LinearSolver
from blo.operators import Operator


@dataclass(frozen=True, eq=False)
class Identity(LinearSolver):
    """Solves `(scale + damping) x = b`, whatever the operator: `scale * I` stands in for A.

    It solves that system exactly; how far `scale * I` is from A is not measured.

    Attributes:
        scale: the curvature that stands in for A; negative reverses the sign of x.
        damping: d in `(scale + d) x = b`.

    Raises:
        ValueError: if `damping` is negative, or `scale + damping` is zero.
    """

    scale: float = 1.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        require_nonnegative(self.damping, "Identity.damping")
        if self.scale + self.damping == 0:
            raise ValueError(
                f"`Identity` needs scale + damping != 0, but they are {self.scale} and {self.damping}. "
                "For an implicit part of zero, use the strategy `Zero`."
            )

    @property
    def tol(self) -> float:
        return 0.0

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        none = torch.zeros(b.shape[:-1], dtype=torch.int64, device=b.device)
        x = b / (self.scale + self.damping)
        residual = torch.zeros_like(b).sum(-1)
        bent = none + (self.scale + self.damping < 0) > 0
        return LinearSolution(x, residual, none, bent, "Identity", measured=False)
