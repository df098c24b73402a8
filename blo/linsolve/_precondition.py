"""Approximate inverses that a user passes to a Krylov solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from blo.operators import Operator, Restricted

Product: TypeAlias = Callable[[Tensor], Tensor]


class Preconditioner(ABC):
    """An approximate inverse that is computed for each system."""

    @abstractmethod
    def inverse(self, operator: Operator, like: Tensor) -> Product:
        """Return `v -> M^-1 v` for an operator A, symmetric positive definite where A is.

        Args:
            operator: A, without damping.
            like: any vector of shape `(*lanes, n)`.
        """


#: `v -> M^-1 v` for the whole space, an operator or any callable; or a `Preconditioner`, which computes one.
Preconditioning: TypeAlias = Product | Preconditioner


def inverse_of(preconditioner: Preconditioning | None, operator: Operator, like: Tensor) -> Product | None:
    """Return `v -> M^-1 v` for the space of the operator; None without a preconditioner.

    The user gives an inverse for the whole Hessian. On a tangent space the system is `P (H + K) P + (I - P)`, and
    `P M^-1 P + (I - P)` has its block structure: it keeps Krylov vectors in the tangent space, and it is symmetric
    positive definite when `M^-1` is.
    """
    if preconditioner is None:
        return None
    if isinstance(preconditioner, Preconditioner):
        return preconditioner.inverse(operator, like)
    if not isinstance(operator, Restricted):
        return preconditioner
    whole, project = preconditioner, operator.tangent.project

    def restricted(v: Tensor) -> Tensor:
        inside = project(v)
        return project(whole(inside)) + (v - inside)

    return restricted
