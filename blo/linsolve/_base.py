"""What a linear solver takes and gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import all_true
from blo.operators import Operator

__all__ = ["LinearSolution", "LinearSolver", "all_true", "largest", "relative_residual", "require_nonnegative"]


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """A solution with the evidence for it.

    Attributes:
        x: shape `(*lanes, n)`; exactly zero where b is.
        residual: `|b - (A + damping I) x| / |b|`, recomputed from x, shape `lanes`; zero where b is.
        iterations: shape `lanes`, integers.
        indefinite: lanes in which a symmetric `A + damping I` showed itself not positive definite, shape
            `lanes`.
        noise: relative accuracy of the operator's products, which no residual can be asked to beat.
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    indefinite: Tensor
    noise: float = 0.0

    def converged(self, tol: float) -> Tensor:
        """Tell which lanes have a relative residual of at most `tol`, shape `lanes`.

        A tolerance below 100 units of rounding is out of reach and taken as that: 2e-14 in double and 1.2e-5
        in single precision; so is one below the noise of the products. A lane with a NaN has not converged.
        """
        return self.residual <= max(tol, 100 * torch.finfo(self.x.dtype).eps, self.noise)


class LinearSolver(ABC):
    """Solves `(A + damping I) x = b` in every lane."""

    @property
    @abstractmethod
    def tol(self) -> float:
        """Relative residual that the solver promises; judge a solution by `LinearSolution.converged(tol)`."""

    @abstractmethod
    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        """Solve for every lane.

        Args:
            operator: A.
            b: shape `(*lanes, n)`.
            x0: a guess of the same shape; a direct method has no use for it.
        """


def require_nonnegative(value: float, name: str) -> None:
    """Refuse a setting that is negative or NaN.

    Raises:
        ValueError: naming `name`.
    """
    if not value >= 0:
        raise ValueError(f"`{name}` must be at least 0, but is {value}. Zero switches it off.")


def largest(b: Tensor) -> tuple[Tensor, Tensor]:
    """Return `max|b|` with 1 in place of 0, and where it was 0; both of shape `(*lanes, 1)`.

    Divided by it, squares of b neither overflow nor vanish.
    """
    size = b.abs().amax(-1, keepdim=True)
    zero = size == 0
    return torch.where(zero, 1.0, size), zero


def relative_residual(operator: Operator, x: Tensor, b: Tensor, damping: float) -> Tensor:
    """Return `|b - (A + damping I) x| / |b|`, shape `lanes`; with zero b, zero for zero x, else infinite."""
    size, _ = largest(b)
    defect = (b - operator(x) - damping * x) / size
    ratio = defect.norm(dim=-1) / (b / size).norm(dim=-1)
    return torch.where((defect == 0).all(-1), 0.0, ratio)
