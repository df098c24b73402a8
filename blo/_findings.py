"""Reports on the problem and its derivative, apart from the convergence of the solves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from blo import tree
from blo._autodiff import plain, unmapped
from blo._policy import Policy
from blo._remedies import STEEP
from blo._term import Counts
from blo._types import Tree
from blo._warned import warn
from blo.errors import ConstantWarning, ConvergenceError, ConvergenceWarning, DegenerateWarning


@dataclass(frozen=True)
class Findings(Policy):
    """Reports constants where a derivative is expected, degenerate constraints and derivatives that are not finite."""

    def loose(self, lanes: Tensor | None) -> None:
        """Report extra solves whose residual is not small compared with the change that they should show."""
        count = 0 if self.off or lanes is None else int(lanes.sum())
        if count:
            self.found(
                f"the lower solve has not converged in {count} of {plain(lanes).numel()} problems "  # type: ignore[arg-type]
                "tilted for `ValueFunction`: the residual is not small compared with the tilt, or the solution does "
                "not respond linearly to it, so the implicit part is wrong. Raise `max_steps` or give the solver a "
                "tolerance, change `penalty` (a lower one against the residual, a higher one against the "
                "nonlinearity), use float64, or Implicit().",
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
                "returned is that of the side on which z was found, or between those of two sides.",
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
                "Does the objective use its argument `theta`, or a module's own parameters?",
                ConvergenceError,
                ConstantWarning,
            )

    def fixed(self, term: Tree) -> None:
        """Report a set or penalty that is given as a constant although it holds tensors that require grad."""
        if not self.off and any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree.leaves(term)):
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
