"""Checks of numerical settings."""

from __future__ import annotations

from torch import Tensor

from blo.errors import StructureError

__all__ = ["require_budget", "require_count", "require_nonnegative", "require_positive", "require_tolerance"]


def require_positive(value: float | None, name: str, otherwise: str = "") -> None:
    """Raise if a setting is None, zero, negative or NaN, or a tensor that requires grad.

    Raises:
        ValueError: with `name`, and the advice `otherwise`.
        StructureError: with `name`, for a tensor that requires grad.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise StructureError(
            f"`{name}` must be a number, but is a tensor that requires grad, into which no gradient would flow. "
            "To learn steps, use ProjectedGradient(step=lambda theta: ...) with Unrolled()."
        )
    # `not value > 0`, because NaN fails every comparison.
    if value is None or not value > 0:
        raise ValueError(f"`{name}` must be positive, but is {value}. {otherwise}".rstrip())


def require_nonnegative(value: float | Tensor, name: str) -> None:
    """Raise if a setting is negative or NaN. Tensors, tolerances of each lane that solvers compute, are not checked.

    Raises:
        ValueError: with `name`.
    """
    if not isinstance(value, Tensor) and not value >= 0:
        raise ValueError(f"`{name}` must be at least 0, but is {value}. Zero switches it off.")


def require_tolerance(value: float | Tensor | None, name: str) -> None:
    """Raise if a tolerance is negative or NaN. None means a fixed number of iterations.

    Raises:
        ValueError: with `name`.
    """
    if value is not None and not isinstance(value, Tensor) and not value >= 0:
        raise ValueError(f"`{name}` must be at least 0, but is {value}. None makes a fixed number of iterations.")


def require_count(value: int, name: str, otherwise: str = "", least: int = 1) -> None:
    """Raise if a count is below `least` or not whole.

    Raises:
        ValueError: with `name`, and the advice `otherwise`.
    """
    if not value >= least or value % 1:
        raise ValueError(f"`{name}` must be at least {least} and whole, but is {value}. {otherwise}".rstrip())


def require_budget(max_steps: int, tol: float | None, name: str = "max_steps") -> None:
    """Raise if a number of steps is below one or a tolerance is not positive.

    Args:
        max_steps: the number.
        tol: the tolerance.
        name: the name of the number.

    Raises:
        ValueError: with the name of the setting.
    """
    require_count(max_steps, name)
    if tol is not None:
        require_positive(tol, "tol", "Use None for a fixed number of steps.")
