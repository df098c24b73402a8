"""Linear operators on flat vectors, one for each lane. Operators declare properties, and solvers require them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class TangentSpace(Protocol):
    """The part of the tangent of a constraint set or penalty that `Restricted` uses."""

    @property
    def curvature(self) -> Tensor | float:
        """Diagonal of K, where K is diagonal."""

    @property
    def bend(self) -> Callable[[Tensor], Tensor] | None:
        """The part of K that is not diagonal, if there is one."""

    def curve(self, v: Tensor) -> Tensor:
        """Return K v for a tangent v."""

    def project(self, v: Tensor) -> Tensor:
        """Return P v."""


class Operator(ABC):
    """A square linear map of vectors of shape `(*lanes, n)`; lanes do not mix."""

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether each lane's matrix is known to be symmetric."""

    @property
    @abstractmethod
    def positive(self) -> bool:
        """Whether each lane's matrix is known to be positive semidefinite."""

    @abstractmethod
    def __call__(self, v: Tensor) -> Tensor:
        """Apply the operator to `v` of shape `(*lanes, n)`."""

    def dense(self, like: Tensor) -> Tensor:
        """Return the matrices, shape `(*lanes, n, n)`, by n applications.

        Args:
            like: any vector of shape `(*lanes, n)`, for its shape, dtype and device.
        """
        basis = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        return torch.stack([self(unit.expand_as(like)) for unit in basis], dim=-1)


@dataclass(frozen=True, eq=False)
class ScaledIdentity(Operator):
    """`scale * I`.

    Attributes:
        scale: a number, or a tensor that broadcasts against `(*lanes, n)` and is constant within a lane.
    """

    scale: Tensor | float

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def positive(self) -> bool:
        return not isinstance(self.scale, Tensor) and self.scale >= 0

    def __call__(self, v: Tensor) -> Tensor:
        return self.scale * v


@dataclass(frozen=True, eq=False)
class Diagonal(Operator):
    """`diag(diagonal)`.

    Attributes:
        diagonal: broadcasts against `(*lanes, n)`.
        positive: whether the caller knows that no entry is negative.
    """

    diagonal: Tensor
    positive: bool = False

    @property
    def symmetric(self) -> bool:
        return True

    def __call__(self, v: Tensor) -> Tensor:
        return self.diagonal * v


@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """Matrices of shape `(*lanes, n, n)`, or one of shape `(n, n)` for every lane.

    Attributes:
        matrix: the entries.
        symmetric: whether the caller knows them to be symmetric.
        positive: whether the caller knows them to be positive semidefinite.
    """

    matrix: Tensor
    symmetric: bool = False
    positive: bool = False

    def __call__(self, v: Tensor) -> Tensor:
        return (self.matrix @ v.unsqueeze(-1)).squeeze(-1)

    def dense(self, like: Tensor) -> Tensor:
        return self.matrix.expand(*like.shape, like.shape[-1])


@dataclass(frozen=True, eq=False)
class Sum(Operator):
    """`left + right`, two operators on vectors of the same shape `(*lanes, n)`."""

    left: Operator
    right: Operator

    @property
    def symmetric(self) -> bool:
        return self.left.symmetric and self.right.symmetric

    @property
    def positive(self) -> bool:
        return self.left.positive and self.right.positive

    def __call__(self, v: Tensor) -> Tensor:
        return self.left(v) + self.right(v)


@dataclass(frozen=True, eq=False)
class Hessian(Operator):
    """The second derivative of a function at one point, given by its products.

    Attributes:
        product: v -> H v on vectors of shape `(*lanes, n)`.
        positive: whether the caller knows the function to be convex.
        symmetric: False for the Jacobian of a map that is not a gradient.
        squares: v -> J' J v with the Jacobian J of the residuals, if the function is half the sum of their squares.
    """

    product: Callable[[Tensor], Tensor]
    positive: bool = False
    symmetric: bool = True
    squares: Callable[[Tensor], Tensor] | None = None

    def __call__(self, v: Tensor) -> Tensor:
        return self.product(v)


@dataclass(frozen=True, eq=False)
class Restricted(Operator):
    """`P (A + K) P` on the tangent space of a constraint set, a multiple of the identity on its complement.

    With the identity on the complement, it is invertible exactly if `P (A + K) P` is invertible on the tangent space. A
    right-hand side in the tangent space has its solution there.

    Attributes:
        operator: A, for example the Hessian of the lower objective.
        tangent: P and K.
        beside: the multiple. With 0, products drop the rounding errors that v has off the tangent space, which would
            dominate if A is small. `dense` then uses a multiple of the size of A, so that the matrix is invertible.
    """

    operator: Operator
    tangent: TangentSpace
    beside: float = 1.0

    @property
    def symmetric(self) -> bool:
        return self.operator.symmetric

    @property
    def positive(self) -> bool:
        """Whether A is: the multipliers in K are not negative at a solution."""
        return self.operator.positive

    def __call__(self, v: Tensor) -> Tensor:
        tangent = self.tangent
        # P goes on both sides of A: A couples active and free coordinates, so P A alone is a different operator.
        inside = tangent.project(v)
        image = self.operator(inside)
        if tangent.bend is not None or isinstance(tangent.curvature, Tensor) or tangent.curvature != 0:
            image = image + tangent.curve(inside)
        # Without an active constraint P returns v itself, and v has no part off the tangent space.
        if inside is v:
            return image
        image = tangent.project(image)
        return torch.add(image, v - inside, alpha=self.beside) if self.beside else image

    def dense(self, like: Tensor) -> Tensor:
        matrix = super().dense(like)
        if self.beside:
            return matrix
        projector = Hessian(self.tangent.project).dense(like)
        # The Frobenius norm of a projector is 0 or at least 1. If it is 0, nothing is free and both norms are rounding.
        root_rank = torch.linalg.matrix_norm(projector, keepdim=True)
        size = torch.linalg.matrix_norm(matrix, keepdim=True) / root_rank
        identity = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        return matrix + torch.where((root_rank > 0.5) & (size > 0), size, 1.0) * (identity - projector)
