"""Second derivatives of a lower problem at one point, from one retained graph of its gradient."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from blo._autodiff import add, differentiated_twice, jvp, pullback
from blo._problem_at_theta import ProblemAtTheta
from blo.gradients._base import Optimality


class Point(abc.ABC):
    """The lower problem at `(theta, z)` with its products.

    H = d2g/dz2, B = d2g/dz dtheta, N is the motion of the active face with theta, and G the change of the term's force
    with theta at a point that moves with the face. N and G are zero unless the term depends on theta.
    """

    optimality: Optimality
    #: Whether H is symmetric. For a fixed-point problem it is not.
    symmetric: bool = True
    _problem: ProblemAtTheta
    _z: Tensor
    _product: Callable[[Tensor], Tensor] | None = None
    #: How `squares` multiplies with J.
    _jacobian: Literal["reverse", "forward"] = "reverse"
    #: Relative error of the products. No linear solve is required to reach a smaller residual.
    noise: float = 0.0
    #: Whether `error` estimates more than rounding.
    estimated: bool = False

    @abc.abstractmethod
    def times_hessian(self, direction: Tensor) -> Tensor:
        """Return H^T times a direction, shape `(*lanes, n)`; the transpose matters for fixed-point problems."""

    def squares(self, direction: Tensor) -> Tensor:
        """Return J^T J times a direction, with the Jacobian J of the residuals of a least-squares problem.

        Raises:
            StructureError: for any other problem.
        """
        if self._product is None:
            self._product = self._problem.detach().gauss_newton(self._z.detach(), self._jacobian)
        return self._product(direction)

    @abc.abstractmethod
    def cross(self, q: Tensor, v: Tensor) -> list[Tensor | None]:
        """Return `-(B + G)^T q + N^T (v - H^T q)` for each leaf of theta, None where theta has no influence.

        Call it last: it may free the graph that the products need.
        """

    def error(self, q: Tensor) -> float | None:
        """Return the estimated relative error of the cross product; None if it is exact up to rounding."""
        return None


class ReversePoint(Point):
    """Products by a backward pass through one retained graph of the gradient."""

    def __init__(self, problem: ProblemAtTheta, z: Tensor) -> None:
        self.symmetric, self.noise = problem.symmetric, problem.eps or 0.0
        with torch.enable_grad():
            self._z = z.detach().requires_grad_()
            self._gradient = problem.gradient(self._z, graph=True)
        slope = self._gradient.detach()
        # The motion is measured from a term with constant parameters, and the tangent space must not keep a graph of
        # theta alive.
        rest = problem.term.detach()
        self._problem = problem
        self.optimality = Optimality(z, slope, rest, problem.tangent(rest, z, slope))

    def times_hessian(self, direction: Tensor) -> Tensor:
        # If the objective is linear in z, its gradient may have no graph: H is zero.
        if not self._gradient.requires_grad:
            return torch.zeros_like(direction)
        with differentiated_twice():
            (product,) = torch.autograd.grad(self._gradient, self._z, direction, retain_graph=True, allow_unused=True)
        return torch.zeros_like(direction) if product is None else product

    def cross(self, q: Tensor, v: Tensor) -> list[Tensor | None]:
        problem, tangent = self._problem, self.optimality.tangent
        outputs = [self._gradient]
        if tangent.force is not None:
            with torch.enable_grad():
                outputs.append(tangent.force(problem.term, self._z))
        inputs = [leaf for leaf in problem.leaves if leaf.requires_grad]
        # The last product frees the graph while it runs, so that its memory can be reused.
        places = [*inputs, self._z] if problem.moving else inputs
        parts = pullback(outputs, places, [-q] * len(outputs), last=not problem.moving)
        if problem.moving:
            # The solution moves with the active face, and with it the point at which gradient and force are taken.
            # `along` is -H q, and includes the derivative of the force in z: the motion has the cotangent v + along.
            along = parts.pop()
            with torch.enable_grad():
                motion = problem.motion(self.optimality.term, tangent, self._z.detach())
            carried = pullback([motion], inputs, [v if along is None else v + along], last=True)
            parts = [add(a, b) for a, b in zip(parts, carried, strict=True)]
        spread = iter(parts)
        return [next(spread) if leaf.requires_grad else None for leaf in problem.leaves]


class TransposedPoint(Point):
    """Products with H instead of H^T, which the derivative of the adjoint of a fixed point needs."""

    def __init__(self, problem: ProblemAtTheta, z: Tensor) -> None:
        self._problem, self._z, self.symmetric, self.noise = problem, z, problem.symmetric, problem.eps or 0.0
        slope = problem.gradient(z)
        self.optimality = Optimality(z, slope, problem.term, problem.tangent(problem.term, z, slope))

    def times_hessian(self, direction: Tensor) -> Tensor:
        product: Tensor = jvp(self._problem.gradient, self._z, direction)
        return product

    def cross(self, q: Tensor, v: Tensor) -> list[Tensor | None]:
        return []
