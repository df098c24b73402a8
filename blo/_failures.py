"""What happens when something did not converge, is degenerate or is not finite: never nothing."""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from blo import tree
from blo._autodiff import length, plain, unmapped
from blo._term import Counts
from blo._types import OnFailure, Tree
from blo.errors import (
    BloError,
    BloWarning,
    ConstantWarning,
    ConvergenceError,
    ConvergenceWarning,
    DegenerateWarning,
    FixedStepsWarning,
    NonFiniteError,
    StructureError,
)
from blo.linsolve import LinearSolution
from blo.solvers import Solution

LOOK = "Look at the objective with torch.autograd.detect_anomaly."
SMALLER = "Try a smaller `step`, or look at the objective with torch.autograd.detect_anomaly."
#: What to do about a derivative that is not finite although what is differentiated is.
_STEEP = (
    "The solution is finite, so some derivative on the way is not: look for roots, norms, logarithms and powers at 0, "
    "and at the objective with torch.autograd.detect_anomaly."
)
_SINGULAR = (
    "The curvature is singular on the tangent space, or nearly, and the upper gradient has a share in the directions "
    "without curvature: the point is no isolated minimiser, and its derivative may not exist. Add a proximal term to "
    "the objective, or `damping` to the linear solver."
)
_BIND = (
    "Bind the data of each problem to its own objective, `lambda theta, z, data=data: ...`, instead of a loop "
    "variable, a buffer that is refilled or a seed that is drawn anew; or call .backward() before they change."
)
_EARLY = "Raise `max_steps`, change `step`, or differentiate with Unrolled()."
_FLOOR = (
    "Nothing improves it: it has come down to the rounding of the gradient, in the precision in which the objective is "
    "computed. Use float64 or no autocast, scale z so that its curvatures differ less, or ask for a larger `tol`."
)
_RANDOM = (
    "`objective` must be a function of theta and z, but two evaluations of its gradient at one point differ{lanes}: it "
    "draws random numbers, or reads data that change. No solve of it converges, and a hypergradient means nothing. For "
    "a module with dropout use blo.functionalize; draw a minibatch outside the objective, or use the algorithms of "
    "blo.stochastic, which are made for noise."
)
#: Files that no warning is about: those of this package and of torch, whose decorators and backward passes lie between.
_INSIDE = (*(str(Path(file).parent) + os.sep for file in (__file__, torch.__file__)), contextlib.__file__)


#: The kinds of warnings that a loop has given; None outside loops.
_GIVEN: contextvars.ContextVar[set[tuple[type, str]] | None] = contextvars.ContextVar("given", default=None)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@contextlib.contextmanager
def one_of_a_kind(given: set[tuple[type, str]]) -> Iterator[None]:
    """Give a warning that differs from one in `given` by its numbers alone no second time; the set is added to."""
    token = _GIVEN.set(given)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _remedy(method: str) -> str:
    """Say what to try where a linear solver, named in a report, has not converged."""
    if "Direct" in method:  # more effort does not help a factorisation
        return _SINGULAR
    if "Neumann" in method or "Nystrom" in method:
        return "Give it more terms, a larger rank or `damping`, or use CG()."
    if not method:  # a division
        return "Use Implicit(), which assumes nothing about the curvature."
    return "Raise `max_iter`, add `damping`, or use Direct()."


def _length(v: Tensor) -> Tensor:
    """Return the 2-norm of each vector, shape `lanes`."""
    return length(v).squeeze(-1)


def _most(numbers: Tensor | float) -> float:
    return float(plain(torch.as_tensor(numbers)).max())


def _warn(message: str, category: type[BloWarning]) -> None:
    """Warn at the line of the caller's code, so that the default filter shows each of its lines once."""
    given, kind = _GIVEN.get(), (category, _NUMBER.sub("", message))
    if given is not None:
        if kind in given:
            return
        given.add(kind)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def unasked(dtype: torch.dtype) -> float:
    """Return the residual of a solution of which none was asked.

    One step solves a linearised problem exactly, up to rounding; anything else is no solution.
    """
    return float(10 * torch.finfo(dtype).eps ** 0.5)


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
        for tensor, what in known:
            if tensor.is_sparse:
                raise StructureError(
                    f"{what} must be a dense tensor, but is sparse, as embeddings with sparse=True make it. Use "
                    "sparse=False, or `functionalize`, which does so."
                )
        flags = [plain(torch.isfinite(tensor)).all() for tensor, _ in known]
        if not bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all()):
            for tensor, what in known:
                self.finite(tensor, what, remedy())

    def lower(self, solution: Solution, remedy: Callable[[], str] = lambda: LOOK) -> None:
        """Report a lower solve that went astray or stopped early; `remedy` says what to do about the former."""
        # A solver that takes bad steps back stays at a finite point where the gradient is NaN.
        residual = solution.residual
        self.all_finite([(solution.z, "the lower solution"), (residual, "the residual of the lower solution")], remedy)
        if self.off:
            return
        if solution.random is not None and bool(plain(solution.random).any()):
            self.random(solution.random)
        elif solution.residual is not None and solution.tol is not None:
            self.stationary(solution.residual, solution.tol, solution.floor)

    def random(self, lanes: Tensor) -> None:
        """Report an objective that is no function, in these lanes."""
        if not self.off:
            flags = plain(lanes)
            of = f" in {int(flags.sum())} of {flags.numel()} problems" if flags.ndim else ""
            self._found(_RANDOM.format(lanes=of), ConvergenceError, ConvergenceWarning)

    def stationary(self, residual: Tensor, tol: Tensor | float, floor: Tensor | None = None) -> None:
        """Report lanes whose projected-gradient residual exceeds the tolerance, or has come down to rounding."""
        missed = plain(~(residual <= tol))
        late = int(missed.sum())
        if not self.off and late:
            asked = _most(tol)
            ended = floor is not None and bool(plain(floor).any())
            self._found(
                f"the lower solve has not converged in {late} of {missed.numel()} problems: residual "
                f"{float(plain(residual).max()):.2e}, tolerance {asked:.2e}. Implicit gradients there belong to "
                f"another point. {_FLOOR if ended else _EARLY}",
                ConvergenceError,
                ConvergenceWarning,
            )

    def fixed_steps(self, residual: Tensor, tol: Tensor | float) -> None:
        """Warn of lanes in which the number of steps that was asked for ended off the solution."""
        missed = plain(~(residual <= tol))
        late = int(missed.sum())
        if late:
            _warn(
                f"the lower solve has not converged in {late} of {missed.numel()} problems: its fixed number of steps "
                f"ended at a residual of {float(plain(residual).max()):.2e}, above {_most(tol):.2e}, measured in the "
                "backward pass. Implicit gradients there belong to another point. Make more steps, use a solver with a "
                "tolerance, or differentiate with Unrolled(). If the steps led to the solution, data that the "
                f"objective captures have changed since. {_BIND}",
                FixedStepsWarning,
            )

    def changed(self, then: Solution, slope: Tensor | None, again: Callable[[], Tensor]) -> None:
        """Report an objective whose gradient at the lower solution is not that of the solve.

        Only lanes that had converged are looked at. Their slopes agree up to what the solve was asked for and to
        rounding. Where they do not, the slope is computed twice more, as the solver did it: an objective of lower
        precision, or an operation that is not deterministic, shows how far apart two evaluations are.

        Args:
            then: what the solve reported.
            slope: the gradient now, shape `(*lanes, n)`; `vmap` over the derivative alone adds lanes. None: compute it.
            again: computes it anew.
        """
        if self.off or then.slope is None or then.residual is None or then.tol is None:
            return
        slope = again() if slope is None else slope
        limit = 10 * torch.maximum(torch.as_tensor(then.tol).to(then.residual), then.residual)
        limit = torch.where(then.residual <= then.tol, limit, torch.inf)

        def gap(now: Tensor) -> Tensor:
            now = plain(now)
            if now.shape == then.slope.shape:  # type: ignore[union-attr]
                return _length(now - then.slope)  # type: ignore[operator]
            # The same problems, each several times over, in an order that nobody knows here.
            return (_length(now).max() - _length(then.slope).max()).abs()  # type: ignore[arg-type]

        limit = limit + 100 * torch.finfo(slope.dtype).eps * _length(then.slope)
        limit = limit if plain(slope).shape == then.slope.shape else limit.max()
        late = plain(gap(slope) > limit)
        if not bool(late.any()):
            return
        first, second = plain(again()), plain(again())
        late = (gap(first) > limit + 10 * _length(first - second)) & late
        if bool(late.any()):
            self._found(
                f"the objective has changed between the solve and its backward pass, in {int(late.sum())} of "
                f"{late.numel()} problems: its gradient at the solution differs by {float(gap(first).max()):.2e} from "
                f"that of the solve, whose residual was {float(then.residual.max()):.2e}. The backward pass evaluates "
                f"the objective again. {_BIND}",
                ConvergenceError,
                ConvergenceWarning,
            )

    def repeated(self, apart: Tensor, limit: float) -> None:
        """Report steps that lead elsewhere when they are made again.

        Args:
            apart: how far, beside the size of the solution or of the way to it, shape `lanes`.
            limit: how far rounding may lead.
        """
        if self.off:
            return
        late = plain(apart > limit)
        if bool(late.any()):
            self._found(
                f"the objective has changed between the solve and its backward pass, in {int(late.sum())} of "
                f"{late.numel()} problems: the solver's steps, made again, lead to another point, at a relative "
                f"distance of {float(plain(apart).max()):.2e}. {_BIND}",
                ConvergenceError,
                ConvergenceWarning,
            )

    def linear(self, solution: LinearSolution, tol: float | None) -> None:
        """Report a linear solve that stopped early, or curvature that is not positive on the tangent space."""
        if self.off:
            return
        indefinite = int(solution.indefinite.sum())
        self.finite(solution.x, "the adjoint")
        # A Krylov solver stops at a NaN in the Hessian and returns the finite iterate before it.
        self.finite(solution.residual, "the residual of the adjoint system")
        if indefinite:
            self._found(
                f"the curvature is not positive on the tangent space in {indefinite} of "
                f"{solution.indefinite.numel()} problems: the point is no isolated minimiser, and its derivative "
                f"may not exist. The adjoint returned has a relative residual of {float(solution.residual.max()):.2e}. "
                "Add a proximal term to the objective, or `damping` to the linear solver.",
                ConvergenceError,
                ConvergenceWarning,
            )
        late = int((~solution.converged(tol)).sum())
        if late and not indefinite:
            self._found(
                f"the linear solve has not converged in {late} of {solution.residual.numel()} problems: relative "
                f"residual {float(solution.residual.max()):.2e}, tolerance {1.0 if tol is None else tol:.2e}. "
                + _remedy(solution.method),
                ConvergenceError,
                ConvergenceWarning,
            )

    def adjoint(
        self,
        linear: LinearSolution,
        tol: float | None,
        residual: Callable[[], Tensor],
        counts: Callable[[], Counts],
        limit: Tensor | None = None,
    ) -> None:
        """Report all that an implicit gradient rests on.

        Args:
            linear: the adjoint.
            tol: the relative residual that it was asked to reach.
            residual: computes that of the lower solution, shape `lanes`.
            counts: counts the directions there.
            limit: the residual above which it is none, shape `lanes`; None where the solver has seen to it.
        """
        if self.off:
            return
        if not self.measured or limit is not None:
            found = residual()
            self.finite(found, "the residual of the lower solution")
            if self.measured or self.tol is not None:
                asked = self.tol if limit is None else limit
                assert asked is not None  # a residual that was measured, and is looked at again, has a limit
                self.stationary(found, asked)
            else:
                self.fixed_steps(found, unasked(linear.x.dtype) if limit is None else limit)
        self.linear(linear, tol)
        self.degenerate(counts())

    def loose(self, lanes: Tensor | None) -> None:
        """Report further solves whose residual is not small beside the change that they are to show."""
        count = 0 if self.off or lanes is None else int(lanes.sum())
        if count:
            self._found(
                f"the lower solve has not converged in {count} of {plain(lanes).numel()} problems "  # type: ignore[arg-type]
                "tilted for `ValueFunction`: the residual is not small beside the tilt `v / penalty`, so the implicit "
                "part is wrong. Lower `penalty`, raise `max_steps` or give the solver a tolerance, use float64, or "
                "Implicit().",
                ConvergenceError,
                ConvergenceWarning,
            )

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
        self.gradients(parts)
        if all(part is None for part in parts):
            self.constant()

    def gradients(self, parts: Sequence[Tensor | None]) -> None:
        """Report an implicit part that is not finite."""
        self.all_finite(((part, "the implicit part") for part in parts), lambda: _STEEP)

    def watched(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the leaves of theta so that their gradients are looked at, for steps that torch records."""
        if self.off or not torch.is_grad_enabled():
            return leaves
        seen = [leaf.view_as(leaf) for leaf in leaves]
        live = [leaf for leaf in map(unmapped, seen) if leaf.requires_grad]
        if live:
            register_multi_grad_hook(live, self.gradients)
        return seen

    def unsettled(self, found: str) -> None:
        """Report steps of a stochastic algorithm that lead nowhere."""
        if not self.off:
            self._found(f"the run does not settle: {found}.", ConvergenceError, ConvergenceWarning)

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
