"""The interface of linear solvers, and functions that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blo._autodiff import choose
from blo.errors import StructureError
from blo.linsolve._space import EUCLIDEAN, Space
from blo.operators import Operator, Restricted

__all__ = [
    "LinearSolution",
    "LinearSolver",
    "damped",
    "floor_of",
    "raised",
    "relative_residual",
    "require_symmetric",
    "started",
    "within",
]


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """The solution of a linear system, with its residual.

    Attributes:
        x: shape `(*lanes, n)`; exactly zero where b is.
        residual: `|b - (A + damping I) x| / |b|`, recomputed from x, shape `lanes`; zero where b is.
        iterations: shape `lanes`, integers.
        indefinite: lanes in which a symmetric `A + damping I` was found not to be positive definite, shape `lanes`.
        method: the solver's name; for a solver that chooses a method, the method.
        noise: relative error of the operator's products. No smaller residual is required.
        measured: whether the residual is that of A; False if it is that of another operator, used in place of A.
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    indefinite: Tensor
    method: str = ""
    noise: float = 0.0
    measured: bool = True

    def converged(self, tol: float | Tensor | None) -> Tensor:
        """Return which lanes have a relative residual of at most `tol`, a number or a tensor of shape `lanes`.

        A tolerance below 100 eps (2e-14 in double and 1.2e-5 in single precision) or below the noise of the products
        cannot be reached, and is raised to that. None only requires x to be better than zero, whose relative residual
        is 1. A lane with a NaN has not converged.
        """
        least = max(100 * torch.finfo(self.x.dtype).eps, self.noise)
        if isinstance(tol, Tensor):
            return self.residual <= tol.clamp(min=least)
        return self.residual < 1 if tol is None else self.residual <= max(tol, least)


class LinearSolver(ABC):
    """Solves `(A + damping I) x = b` in every lane."""

    @property
    @abstractmethod
    def tol(self) -> float | None:
        """Relative residual that the solver promises; judge a solution by `LinearSolution.converged(tol)`.

        None for an inverse that is meant to be approximate.
        """

    @abstractmethod
    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        """Solve for every lane.

        Args:
            operator: A.
            b: shape `(*lanes, n)`.
            x0: a guess of the same shape; direct methods ignore it.
        """

    def relaxed(self, tol: Tensor) -> LinearSolver:
        """Return the solver with each lane's tolerance raised to at least `tol`, for the first steps of `Newton`.

        A solver that does not define this method solves every step's system to its own tolerance.

        Args:
            tol: relative residuals, shape `(*lanes, 1)`.
        """
        return self


def raised(tol: float | None, least: Tensor) -> Any:
    """Return the tolerance raised to at least `least`, one for each lane; None stays None."""
    return None if tol is None else torch.clamp(least, min=tol)


def require_symmetric(operator: Operator, solver: str) -> None:
    """Raise unless the operator is declared symmetric.

    Raises:
        StructureError: if it is not; the message names `solver`.
    """
    if not operator.symmetric:
        raise StructureError(
            f"`{solver}` needs a symmetric operator, but {type(operator).__name__} is not declared symmetric. The "
            "operator of `LowerProblem.fixed_point` is never symmetric: use `GMRES`, `Direct` or `Auto`. Declare an "
            "operator of your own as `Dense(matrix, symmetric=True)`."
        )


def relative_residual(operator: Operator, x: Tensor, b: Tensor, damping: float, space: Space = EUCLIDEAN) -> Tensor:
    """Return `|b - (A + damping I) x| / |b|`, shape `lanes`, for b divided by its `Space.size`.

    With zero b it is zero for zero x, else infinite.
    """
    defect = b - operator(x)
    rest = space.norm(defect - damping * x if damping else defect)
    # Zero b with zero x would give 0 / 0.
    return choose(rest.ne(0), rest / space.norm(b), 0.0).squeeze(-1)


def started(
    apply: Callable[[Tensor], Tensor],
    rhs: Tensor,
    x0: Tensor | None,
    size: Tensor,
    zero: Tensor,
    space: Space = EUCLIDEAN,
) -> tuple[Tensor, Tensor]:
    """Return the start of an iteration and its residual: the guess, or zero where the guess has a larger residual.

    Args:
        apply: the product with the system's matrix.
        rhs: b divided by `size`, shape `(*lanes, n)`.
        x0: the guess, in units of b; None for zero.
        size: `space.size(b)`, shape `(*lanes, 1)`.
        zero: where b is zero, shape `(*lanes, 1)`.
        space: the norm.
    """
    if x0 is None:
        return torch.zeros_like(rhs), rhs
    x = torch.where(zero, 0.0, x0 / size)
    r = rhs - apply(x)
    stale = space.norm(r) > space.norm(rhs)
    return torch.where(stale, 0.0, x), torch.where(stale, rhs, r)


def damped(operator: Operator, damping: float) -> Callable[[Tensor], Tensor]:
    """Return the product with `A + damping I`."""
    return operator if damping == 0 else lambda v: torch.add(operator(v), v, alpha=damping)


def within(operator: Operator, v: Tensor) -> Tensor:
    """Return the part of v in the tangent space that the operator is restricted to, all of v for any other operator."""
    return operator.tangent.project(v) if isinstance(operator, Restricted) else v


def floor_of(tol: float | Tensor | None, b: Tensor) -> Any:
    """Return the tolerance, but at least the dtype's eps, which also replaces None."""
    eps = torch.finfo(b.dtype).eps
    if tol is None:
        return eps
    return tol.clamp(min=eps) if isinstance(tol, Tensor) else max(tol, eps)
