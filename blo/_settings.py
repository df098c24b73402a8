"""What settings must satisfy that are numbers."""

from __future__ import annotations

from torch import Tensor

from blo.errors import StructureError

__all__ = ["require_budget", "require_count", "require_nonnegative", "require_positive", "require_tolerance"]


def require_positive(value: float, name: str, otherwise: str = "") -> None:
    """Refuse a setting that is zero, negative or NaN, and one that a gradient is expected of.

    Raises:
        ValueError: naming `name`, with what to do `otherwise`.
        StructureError: likewise, for a tensor that requires grad.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise StructureError(
            f"`{name}` must be a number, but is a tensor that requires grad, into which no gradient would flow. "
            "To learn steps, use ProjectedGradient(step=lambda theta: ...) with Unrolled()."
        )
    if not value > 0:
        raise ValueError(f"`{name}` must be positive, but is {value}. {otherwise}".rstrip())


def require_nonnegative(value: float | Tensor, name: str) -> None:
    """Refuse a setting that is negative or NaN; tolerances of each lane, which solvers compute, are not looked at.

    Raises:
        ValueError: naming `name`.
    """
    if not isinstance(value, Tensor) and not value >= 0:
        raise ValueError(f"`{name}` must be at least 0, but is {value}. Zero switches it off.")


def require_tolerance(value: float | Tensor | None, name: str) -> None:
    """Refuse a tolerance that is negative or NaN. None stands for a fixed number of iterations.

    Raises:
        ValueError: naming `name`.
    """
    if value is not None:
        require_nonnegative(value, name)


def require_count(value: int, name: str, otherwise: str = "", least: int = 1) -> None:
    """Refuse a number of things below the `least`, or one that is not whole.

    Raises:
        ValueError: naming `name`, with what to do `otherwise`.
    """
    if not value >= least or value % 1:
        raise ValueError(f"`{name}` must be at least {least} and whole, but is {value}. {otherwise}".rstrip())


def require_budget(max_steps: int, tol: float | None, name: str = "max_steps") -> None:
    """Refuse a number of steps below one, and a tolerance that is not positive.

    Args:
        max_steps: the number.
        tol: the tolerance.
        name: what the number is called.

    Raises:
        ValueError: naming the setting.
    """
    require_count(max_steps, name)
    if tol is not None:
        require_positive(tol, "tol", "For a fixed number of steps, None.")
