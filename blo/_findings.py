"""How one call reports problems, and its reports on all but the convergence of the solves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from blo import tree
from blo._autodiff import plain, sums_are_finite, unmapped
from blo._remedies import LOOK, STEEP
from blo._term import Counts
from blo._types import OnFailure, Tree
from blo._warned import warn
from blo.errors import (
    BloError,
    BloWarning,
    ConstantWarning,
    ConvergenceError,
    ConvergenceWarning,
    DegenerateWarning,
    NonFiniteError,
    StructureError,
)


@dataclass(frozen=True)
class Findings:
    """Reports constants where a derivative is expected, degenerate constraints and values that are not finite.

    Args:
        on_failure: `"raise"`: every problem is an error. `"warn"`: every problem is a warning. None (the default of
            the library): values that are not finite are an error, other problems a warning. `"ignore"`: nothing is
            measured, so the host never waits for the device.

    Raises:
        ValueError: for another `on_failure`.
    """

    on_failure: OnFailure | None = None

    def __post_init__(self) -> None:
        if self.on_failure not in (None, "raise", "warn", "ignore"):
            raise ValueError(f"`on_failure` must be 'raise', 'warn' or 'ignore', but is {self.on_failure!r}.")

    @property
    def off(self) -> bool:
        """Whether nothing is to be measured."""
        return self.on_failure == "ignore"

    def finite(self, tensor: Tensor, what: str, remedy: str = LOOK) -> None:
        """Report the entries of a tensor that are NaN or infinite.

        Raises:
            NonFiniteError: unless `on_failure` is `"warn"` or `"ignore"`.
        """
        if self.off:
            return
        infinite = plain(~torch.isfinite(tensor))
        bad = int(infinite.sum())
        if bad:
            message = f"{what} holds {bad} of {infinite.numel()} entries that are NaN or infinite. {remedy}"
            if self.on_failure == "warn":
                warn(message, ConvergenceWarning)
            else:
                raise NonFiniteError(message)

    def all_finite(self, parts: Iterable[tuple[Tensor | None, str]], remedy: Callable[[], str] = lambda: LOOK) -> None:
        """Report the entries of several tensors that are NaN or infinite.

        If all entries are finite, the host waits for the device once.

        Args:
            parts: the tensors, with their names in messages; None is left out.
            remedy: returns the advice in the message.

        Raises:
            NonFiniteError: unless `on_failure` is `"warn"` or `"ignore"`.
            StructureError: if a tensor is sparse.
        """
        known = [(tensor, what) for tensor, what in parts if tensor is not None]
        if self.off or not known:
            return
        for tensor, what in known:
            if tensor.is_sparse:
                raise StructureError(
                    f"{what} must be a dense tensor, but is sparse, as embeddings with sparse=True make it. Set "
                    "sparse=False, or use `functionalize`, which sets it."
                )
        # A sum may also overflow, so the entries of each tensor decide.
        if not sums_are_finite(tensor for tensor, _ in known):
            for tensor, what in known:
                self.finite(tensor, what, remedy())

    def found(self, message: str, error: type[BloError], warning: type[BloWarning]) -> None:
        """Raise the error if `on_failure` is `"raise"`; otherwise warn."""
        if self.on_failure == "raise":
            raise error(message)
        warn(message, warning)

    def loose(self, lanes: Tensor | None) -> None:
        """Report extra solves whose residual is not small compared with the change that they should show."""
        count = 0 if self.off or lanes is None else int(lanes.sum())
        if count:
            self.found(
                f"the lower solve has not converged in {count} of {plain(lanes).numel()} problems "  # type: ignore[arg-type]
                "tilted for `ValueFunction`: the residual is not small compared with the tilt, or the solution does "
                "not respond linearly to it, so the implicit part is wrong. Raise `max_steps`, give the solver a "
                "tolerance, or use float64. Lower `penalty` if the residual is the cause, raise it if the "
                "nonlinearity is, or use Implicit().",
                ConvergenceError,
                ConvergenceWarning,
            )

    def degenerate(self, counts: Counts) -> None:
        """Report active constraints whose multiplier is zero."""
        count = int(counts.degenerate.sum())
        if not self.off and count:
            self.found(
                f"{count} active constraints have a zero multiplier, or depend on others but move apart with theta: "
                "strict complementarity fails, and the solution has one-sided derivatives only. The hypergradient "
                "returned is that of the side on which z was found, or lies between the one-sided ones. If the set is "
                "hardly larger than its `slack`, the cause may be rounding: use a larger unit for z.",
                ConvergenceError,
                DegenerateWarning,
            )

    def gradients(self, parts: Sequence[Tensor | None]) -> None:
        """Report an implicit part that is not finite."""
        self.all_finite(((part, "the implicit part") for part in parts), lambda: STEEP)

    def watched(self, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the leaves of theta with a hook that checks their gradients, for steps that torch records."""
        if self.off or not torch.is_grad_enabled():
            return leaves
        # Views: a hook on a leaf of the caller would stay there and see the gradients of later backward passes.
        seen = [leaf.view_as(leaf) for leaf in leaves]
        live = [leaf for leaf in map(unmapped, seen) if leaf.requires_grad]
        if live:
            register_multi_grad_hook(live, self.gradients)
        return seen

    def unsettled(self, found: str) -> None:
        """Report a stochastic algorithm that does not settle."""
        if not self.off:
            self.found(f"the run does not settle: {found}.", ConvergenceError, ConvergenceWarning)

    def constant(self) -> None:
        """Report that theta does not enter the lower problem."""
        if not self.off:
            self.found(
                "theta does not enter the lower problem, so the implicit part is zero by definition. "
                "Check that the objective uses its argument `theta`, not a module's own parameters.",
                ConvergenceError,
                ConstantWarning,
            )

    def fixed(self, term: Tree) -> None:
        """Report a set or penalty that is given as a constant although it holds tensors that require grad."""
        if self.off or not getattr(term, "__dict__", None):  # without attributes it has no parameters
            return
        if any(leaf.requires_grad for leaf in tree.tensors(term)):
            self.found(
                f"the {type(term).__name__} holds a tensor that requires grad, but is given as a constant, so no "
                "gradient flows into it. Pass a function `theta -> set`, or `.detach()` the tensor.",
                ConvergenceError,
                ConstantWarning,
            )

    def idle(self) -> None:
        """Report that the solver made no step, so that there is nothing to unroll."""
        if not self.off:
            self.found(
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
            warn(message, ConstantWarning)
