"""The inverse of a multiple of the identity that is used in place of the operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blo._settings import require_nonnegative
from blo.linsolve._base import LinearSolution, LinearSolver
from blo.operators import Operator


@dataclass(frozen=True, eq=False)
class Identity(LinearSolver):
    """Solves `(scale + damping) x = b` for any operator: `scale * I` replaces A.

    It solves that system exactly; the distance of `scale * I` from A is not measured.

    Attributes:
        scale: the curvature used in place of A; a negative one reverses the sign of x.
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
                "To leave out the implicit part, use the strategy `Zero`."
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
