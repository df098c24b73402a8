"""What `blo` raises and warns with. Every message names the argument, the rule, what was found and a remedy."""

from __future__ import annotations


class BloError(Exception):
    """Base class of every error raised on purpose by `blo`."""


class StructureError(BloError, ValueError):
    """A pytree, shape, dtype or device does not fit what it is used with."""


class InfeasibleError(BloError, ValueError):
    """A constraint set is empty."""


class NonFiniteError(BloError, ArithmeticError):
    """A NaN or an infinity appeared; no number is made up in its place."""


class ConvergenceError(BloError, RuntimeError):
    """An iteration stopped before its tolerance and `on_failure="raise"` was asked for."""


class BloWarning(UserWarning):
    """Base class of every warning given by `blo`."""


class ConvergenceWarning(BloWarning):
    """An iteration stopped before its tolerance: the hypergradient belongs to another point."""


class DegenerateWarning(BloWarning):
    """Strict complementarity fails: the solution has one-sided derivatives only."""


class ConstantWarning(BloWarning):
    """The upper variable does not enter the lower problem: the implicit part is zero by definition."""
