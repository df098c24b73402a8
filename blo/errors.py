"""The errors and warnings that `blo` defines. Messages name the argument, the rule, what was found and a remedy."""

from __future__ import annotations


class BloError(Exception):
    """Base class of the errors that `blo` defines. Settings out of range raise a plain `ValueError` instead."""


class StructureError(BloError, ValueError):
    """A tree, shape, dtype, device or part does not fit what it is used with. Also a `ValueError`."""


class InfeasibleError(BloError, ValueError):
    """A constraint set is empty. Also a `ValueError`."""


class NonFiniteError(BloError, ArithmeticError):
    """A NaN or an infinity appeared; no number is made up in its place. Also an `ArithmeticError`."""


class DerivativeError(BloError, NotImplementedError):
    """Torch has no second derivative of an operation of an objective. Also a `NotImplementedError`."""


class ConvergenceError(BloError, RuntimeError):
    """What is else a warning, with `on_failure="raise"`: a solve that stopped early, say. Also a `RuntimeError`."""


class RankError(BloError, RuntimeError):
    """Another process failed or does not answer, so no mean over all of them can be taken. Also a `RuntimeError`."""


class BloWarning(UserWarning):
    """Base class of every warning given by `blo`."""


class ConvergenceWarning(BloWarning):
    """A solve stopped before its tolerance, or the curvature is not positive: the result is not what was asked for.

    With `on_failure="warn"` it also tells of values that are not finite.
    """


class FixedStepsWarning(ConvergenceWarning):
    """A fixed number of steps, as asked for, ended off the solution, and an implicit gradient was taken there.

    Whoever knows may silence it alone, `warnings.simplefilter("ignore", blo.FixedStepsWarning)`: what else is wrong is
    still told. It is a warning with `on_failure="raise"`, too.
    """


class DegenerateWarning(BloWarning):
    """Strict complementarity fails: the solution has one-sided derivatives only."""


class ConstantWarning(BloWarning):
    """The upper variable does not enter the lower problem, or needs no gradient: the solution is a constant."""
