"""The errors and warnings that `blo` defines. Messages name the argument, the rule, what was found and a remedy."""

from __future__ import annotations


class BloError(Exception):
    """Base class of the errors that `blo` defines. Settings out of range raise a plain `ValueError` instead."""


class StructureError(BloError, ValueError):
    """An argument has the wrong tree structure, shape, dtype, device or type. Also a `ValueError`."""


class InfeasibleError(BloError, ValueError):
    """A constraint set is empty. Also a `ValueError`."""


class NonFiniteError(BloError, ArithmeticError):
    """A NaN or an infinity appeared; it is never replaced by a number. Also an `ArithmeticError`."""


class DerivativeError(BloError, NotImplementedError):
    """An objective uses an operation that torch cannot differentiate twice. Also a `NotImplementedError`."""


class ConvergenceError(BloError, RuntimeError):
    """Raised in place of most warnings with `on_failure="raise"`. Also a `RuntimeError`."""


class RankError(BloError, RuntimeError):
    """Another process failed or does not answer, so no mean over all of them can be taken. Also a `RuntimeError`."""


class BloWarning(UserWarning):
    """Base class of every warning given by `blo`."""


class ConvergenceWarning(BloWarning):
    """A solve stopped before its tolerance, or the curvature is not positive: the result may be wrong.

    With `on_failure="warn"` it also reports values that are not finite.
    """


class FixedStepsWarning(ConvergenceWarning):
    """A solver with a fixed number of steps ended away from the solution, and an implicit gradient was taken there.

    If this is intended, silence this category alone: `warnings.simplefilter("ignore", blo.FixedStepsWarning)`. Other
    problems are still reported. It stays a warning with `on_failure="raise"`.
    """


class DegenerateWarning(BloWarning):
    """Strict complementarity fails: the solution has one-sided derivatives only."""


class ConstantWarning(BloWarning):
    """The solution is a constant, or a derivative is lost.

    The upper variable does not enter the lower problem, or needs no gradient; a set or penalty that is given as a
    constant holds a tensor that requires grad; or `Unrolled` had no step to differentiate.
    """
