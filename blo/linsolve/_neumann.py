"""The Neumann series of the inverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import all_true, stride
from blo._settings import require_count, require_nonnegative, require_positive, require_tolerance
from blo.linsolve._base import LinearSolution, LinearSolver, damped, floor_of, relative_residual, within
from blo.linsolve._space import InnerProduct, Space
from blo.operators import Operator

#: Power iterations that estimate the largest eigenvalue.
_POWER = 10


@dataclass(frozen=True, eq=False)
class Neumann(LinearSolver):
    """`x = step * sum_k (I - step (A + damping I))^k b`, a truncated series.

    It converges if every eigenvalue of `A + damping I` lies between 0 and `2 / step`; if it diverges, the residual
    shows it. With the step of gradient descent, k terms give the derivative of k steps from the optimum.

    Source: Lorraine, Vicol and Duvenaud (AISTATS 2020), section 4.

    Attributes:
        terms: number of terms of the series, which starts from the guess if there is one. Each takes one product, the
            last one for the residual.
        step: positive; None for the inverse of the largest eigenvalue, which ten power iterations from b estimate
            from below for each lane. Each takes a product.
        damping: d in `(A + d I) x = b`.
        tol: relative residual at which a lane stops early; None sums all terms, and then counts any solution better
            than zero as converged.
        inner: the inner product `(a, b)` of vectors `(*axes, n)`, shape `(*axes, 1)`, in whose norm residuals are
            measured; None for the Euclidean one. See `blo.distributed.inner_product`.

    Raises:
        ValueError: if `terms` is below 1, `step` is not positive, or `damping` or `tol` is negative.
    """

    terms: int = 10
    step: float | None = None
    damping: float = 0.0
    tol: float | None = None
    inner: InnerProduct | None = None

    def __post_init__(self) -> None:
        require_count(self.terms, "Neumann.terms", "To solve no system, use the strategy `Zero`.")
        require_nonnegative(self.damping, "Neumann.damping")
        require_tolerance(self.tol, "Neumann.tol")
        if self.step is not None:
            require_positive(self.step, "Neumann.step", "None estimates one.")

    def solve(self, operator: Operator, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        apply = damped(operator, self.damping)
        space = Space(self.inner)
        # Solve for b / max|b|: squares of a tiny or huge b would underflow or overflow.
        size, zero = space.size(b)
        rhs = b / size
        # Project each term, so that rounding errors do not leave the tangent space: off it the matrix is the identity,
        # for which the step may be too long.
        inside = within(operator, rhs)
        x = torch.zeros_like(b) if x0 is None else within(operator, torch.where(zero, 0.0, x0 / size))
        term = inside if x0 is None else within(operator, inside - apply(x))

        def image_of(v: Tensor) -> Tensor:
            return within(operator, apply(v))

        step = self.step if self.step is not None else 1 / _largest_eigenvalue(image_of, inside, space)
        length = space.norm(rhs)
        goal = -1.0 if self.tol is None else floor_of(self.tol, b) * length
        running = ~zero & (space.norm(term) > goal)
        iterations = torch.zeros_like(running, dtype=torch.int64)
        indefinite = torch.zeros_like(running)
        for index in range(self.terms):
            if self.tol is not None and index % stride(b) == 0 and all_true(~running):
                break
            x = torch.where(running, x + step * term, x)
            iterations = iterations + running
            if index + 1 < self.terms:
                image = image_of(term)
                # A term at rounding level shows nothing about the curvature: its square underflows in the end.
                telling = space.norm(term) > floor_of(0.0, b) * length
                indefinite = indefinite | (running & telling & (space.dot(term, image) <= 0))
                term = term - step * image
                running = running & (space.norm(term) > goal)
        if not operator.symmetric:
            indefinite = torch.zeros_like(indefinite)
        # Off the tangent space the system is (1 + damping) I.
        x = x + (rhs - inside) / (1 + self.damping)
        residual = relative_residual(operator, x, rhs, self.damping, space)
        return LinearSolution(size * x, residual, iterations.squeeze(-1), indefinite.squeeze(-1), "Neumann")


def _largest_eigenvalue(apply: Callable[[Tensor], Tensor], b: Tensor, space: Space) -> Tensor:
    """Estimate the largest eigenvalue by power iterations from b, shape `(*lanes, 1)`; 1 where the image is zero.

    Eigenvectors without a component in b do not occur in the series either, so their eigenvalues do not matter.
    """
    v, stretch = b, torch.ones_like(b[..., :1])
    for _ in range(_POWER):
        length = space.norm(v)
        v = apply(v / torch.where(length > 0, length, 1.0))
        stretch = space.norm(v)
    return torch.where(stretch > 0, stretch, 1.0)
