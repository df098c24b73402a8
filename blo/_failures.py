"""What happens when something did not converge, is degenerate or is not finite: never nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import plain
from blo._term import Counts
from blo._types import OnFailure, Tree
from blo.errors import (
    BloError,
    BloWarning,
    ConstantWarning,
    ConvergenceError,
    ConvergenceWarning,
    DegenerateWarning,
    NonFiniteError,
)
from blo.linsolve import LinearSolution
from blo.solvers import Solution

LOOK = "Try a smaller `step`, or look at the objective with torch.autograd.detect_anomaly."
_SINGULAR = (
    "The curvature is singular on the tangent space, or nearly: the point is no isolated minimiser. Add a proximal "
    "term to the objective, or `damping` to the linear solver."
)
#: Files that no warning is about: those of this package and of torch, whose decorators and backward passes lie between.
_INSIDE = (*(str(Path(file).parent) + os.sep for file in (__file__, torch.__file__)), contextlib.__file__)


def _warn(message: str, category: type[BloWarning]) -> None:
    """Warn at the line of the caller's code, so that the default filter shows each of its lines once."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@dataclass(frozen=True)
class Checks:
    """The policy of one call.

    Args:
        on_failure: `"raise"`: every finding is an error. `"warn"`: every finding is a warning. None (the default of
            the library): what is not finite is an error, all else a warning. `"ignore"`: nothing is measured, so
            the host never waits for the device.
        measured: the lower solver reports its own residual; otherwise implicit strategies measure it.
        tol: what that residual was asked to reach; None: `10 sqrt(eps)`.

    Raises:
        ValueError: for any other value.
    """

    on_failure: OnFailure | None = None
    measured: bool = False
    tol: Tensor | float | None = None

    def __post_init__(self) -> None:
        if self.on_failure not in (None, "raise", "warn", "ignore"):
            raise ValueError(f"`on_failure` must be 'raise', 'warn' or 'ignore', but is {self.on_failure!r}.")

    @property
    def off(self) -> bool:
        """Whether nothing is to be measured."""
        return self.on_failure == "ignore"

    def finite(self, tensor: Tensor, what: str, remedy: str = LOOK) -> None:
        """Report entries that are NaN or infinite."""
        if self.off:
            return
        infinite = plain(~torch.isfinite(tensor))
        bad = int(infinite.sum())
        if bad:
            message = f"{what} holds {bad} of {infinite.numel()} entries that are NaN or infinite. {remedy}"
            if self.on_failure == "warn":
                _warn(message, ConvergenceWarning)
            else:
                raise NonFiniteError(message)

    def all_finite(self, parts: Iterable[tuple[Tensor | None, str]], remedy: Callable[[], str] = lambda: LOOK) -> None:
        """Report entries of several tensors that are NaN or infinite; one wait for the device where there are none."""
        known = [(tensor, what) for tensor, what in parts if tensor is not None]
        if self.off or not known:
            return
        flags = [plain(torch.isfinite(tensor)).all() for tensor, _ in known]
        if not bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all()):
            for tensor, what in known:
                self.finite(tensor, what, remedy())

    def lower(self, solution: Solution, remedy: Callable[[], str] = lambda: LOOK) -> None:
        """Report a lower solve that went astray or stopped early; `remedy` says what to do about the former."""
        # A solver that takes bad steps back stays at a finite point where the gradient is NaN.
        residual = solution.residual
        self.all_finite([(solution.z, "the lower solution"), (residual, "the residual of the lower solution")], remedy)
        if not self.off and solution.residual is not None and solution.tol is not None:
            self.stationary(solution.residual, solution.tol)

    def stationary(self, residual: Tensor, tol: Tensor | float) -> None:
        """Report lanes whose projected-gradient residual exceeds the tolerance."""
        missed = plain(~(residual <= tol))
        late = int(missed.sum())
        if not self.off and late:
            asked = float(plain(torch.as_tensor(tol)).max())
            self._found(
                f"the lower solve has not converged in {late} of {missed.numel()} problems: residual "
                f"{float(plain(residual).max()):.2e}, tolerance {asked:.2e}. Implicit gradients there belong to "
                "another point. Raise `max_steps`, change `step`, or differentiate with Unrolled().",
                ConvergenceError,
                ConvergenceWarning,
            )

    def linear(self, solution: LinearSolution, tol: float | None) -> None:
        """Report a linear solve that stopped early, or curvature that is not positive on the tangent space."""
        if self.off:
            return
        indefinite = int(solution.indefinite.sum())
        self.finite(solution.x, "the adjoint", _SINGULAR if indefinite else LOOK)
        # A Krylov solver stops at a NaN in the Hessian and returns the finite iterate before it.
        self.finite(solution.residual, "the residual of the adjoint system")
        if indefinite:
            self._found(
                f"the curvature is not positive on the tangent space in {indefinite} of "
                f"{solution.indefinite.numel()} problems: the point is no isolated minimiser, and its derivative "
                "may not exist. Add a proximal term to the objective, or `damping` to the linear solver.",
                ConvergenceError,
                ConvergenceWarning,
            )
        late = int((~solution.converged(tol)).sum())
        if late and not indefinite:
            self._found(
                f"the linear solve has not converged in {late} of {solution.residual.numel()} problems: relative "
                f"residual {float(solution.residual.max()):.2e}, tolerance {1.0 if tol is None else tol:.2e}. "
                "Raise `max_iter`, add `damping`, or use Direct().",
                ConvergenceError,
                ConvergenceWarning,
            )

    def adjoint(
        self, linear: LinearSolution, tol: float | None, residual: Callable[[], Tensor], counts: Callable[[], Counts]
    ) -> None:
        """Report all that an implicit gradient rests on."""
        if self.off:
            return
        if not self.measured:
            found = residual()
            self.finite(found, "the residual of the lower solution")
            # One step solves a linearised problem exactly, up to rounding; anything else is no solution.
            self.stationary(found, 10 * torch.finfo(linear.x.dtype).eps ** 0.5 if self.tol is None else self.tol)
        self.linear(linear, tol)
        self.degenerate(counts())

    def degenerate(self, counts: Counts) -> None:
        """Report active constraints whose multiplier is zero."""
        count = int(counts.degenerate.sum())
        if not self.off and count:
            self._found(
                f"{count} active constraints have a zero multiplier, or depend on others from which theta parts them: "
                "strict complementarity fails, and the solution has one-sided derivatives only. The hypergradient "
                "returned is that of the side on which z was found, or between those of two sides.",
                ConvergenceError,
                DegenerateWarning,
            )

    def implicit(self, parts: Sequence[Tensor | None]) -> None:
        """Report an implicit part that is not finite, or is zero by definition."""
        self.all_finite((part, "the implicit part") for part in parts)
        if all(part is None for part in parts):
            self.constant()

    def constant(self) -> None:
        """Report that theta does not enter the lower problem."""
        if not self.off:
            self._found(
                "theta does not enter the lower problem, so the implicit part is zero by definition. "
                "Does the objective use its argument `theta`, or a module's own parameters?",
                ConvergenceError,
                ConstantWarning,
            )

    def fixed(self, term: Tree) -> None:
        """Report a set or penalty that is given as it is although it holds tensors that require grad."""
        if not self.off and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree.leaves(term)):
            self._found(
                f"the {type(term).__name__} holds a tensor that requires grad, but is given as a constant, so no "
                "gradient flows into it. Pass a function `theta -> set`, or `.detach()` the tensor.",
                ConvergenceError,
                ConstantWarning,
            )

    def idle(self) -> None:
        """Report that the solver made no step, so that there is nothing to unroll."""
        if not self.off:
            self._found(
                "the lower solver made no step, since it started at a solution: `Unrolled` differentiates steps, so "
                "the implicit part is zero. Start elsewhere, make a fixed number of steps (tol=None), or use "
                "Implicit().",
                ConvergenceError,
                ConstantWarning,
            )

    def held(self) -> None:
        """Warn that theta is a constant where a derivative may be expected; the solution is right, so no error."""
        if not self.off:
            message = (
                "no leaf of `theta` requires grad, so the solution is a constant. Call theta.requires_grad_(), or "
                "solve under torch.no_grad() where no gradient is wanted."
            )
            _warn(message, ConstantWarning)

    def _found(self, message: str, error: type[BloError], warning: type[BloWarning]) -> None:
        if self.on_failure == "raise":
            raise error(message)
        _warn(message, warning)
