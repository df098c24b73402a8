"""What the settings of all iterative solvers must satisfy."""

from __future__ import annotations

__all__ = ["require_budget", "require_positive"]


def require_budget(max_steps: int, tol: float | None, name: str = "max_steps") -> None:
    """Refuse a number of steps below one, and a tolerance that is not positive.

    Args:
        max_steps: the number.
        tol: the tolerance.
        name: what the number is called.

    Raises:
        ValueError: naming the setting.
    """
    if max_steps < 1:
        raise ValueError(f"`{name}` must be at least 1, but is {max_steps}.")
    if tol is not None and not tol > 0:
        raise ValueError(f"`tol` must be positive, or None for a fixed number of steps, but is {tol}.")


def require_positive(value: float, name: str) -> None:
    """Refuse a setting that is not positive, or NaN.

    Raises:
        ValueError: naming the setting.
    """
    if not value > 0:
        raise ValueError(f"`{name}` must be positive, but is {value}.")
