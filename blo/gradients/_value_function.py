"""The hypergradient from first derivatives alone, by the value function of a tilted lower problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo import tree
from blo._bound import Bound
from blo._failures import Checks
from blo._problem import FlatProblem
from blo._settings import require_positive
from blo.gradients._base import Pulled, Solve, Strategy, Trace
from blo.gradients._first_order import FirstOrder

#: Residuals that the solves are asked for, and above which they do not bear the result, in units of the tilt.
_SHARE, _LOOSE = 1e-6, 1e-2


@dataclass(frozen=True)
class ValueFunction(Strategy):
    """Tilts the lower problem by the upper gradient v = df/dz, and compares the two solutions.

    With `y` the solution of `minimise g(theta, z) + <v, z> / penalty`, the implicit part is estimated by
    `penalty * (dg/dtheta(y) - dg/dtheta(z*))`, whose error is of the order `1/penalty` (Liu et al., NeurIPS 2022,
    BOME; Kwon et al., ICML 2023, F2SA). It takes one or two more lower solves and no second derivative at all, on any
    constraint set and with any penalty term. What the solves leave is amplified by `penalty`: a solver with a tolerance
    is asked for residuals of `1e-6 |v| / penalty`, and a warning says where they stay above a hundredth of the tilt
    `|v| / penalty`. In single precision they cannot be smaller than the rounding of gradients, which is about a percent
    of the tilt at a penalty of 1e3 and a v of 1e-2: lower the penalty for an upper objective in a small unit.

    Args:
        penalty: the weight of the lower problem against the upper one, in units of upper over lower objective.
        two_sided: also tilt the other way and take the central difference, whose error is of the order `1/penalty^2`.

    Raises:
        ValueError: if the penalty is not positive.
    """

    penalty: float = 1e3
    two_sided: bool = False

    def __post_init__(self) -> None:
        require_positive(self.penalty, "penalty", "Larger is more exact.")

    def trace(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve) -> Trace:
        rule = _TiltRule(self, solve)
        z = rule.forward(problem, [leaf.detach() for leaf in leaves], z0)

        def pullback(v: Tensor, guess: Tensor | None) -> Pulled:
            parts, loose = rule.compare(problem, leaves, z, v)
            return Pulled(parts, loose=loose)

        return Trace(z, pullback)

    def attach(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve, checks: Checks
    ) -> Tensor:
        return FirstOrder.solve(problem, _TiltRule(self, solve, checks), z0, leaves, checks)


@dataclass(frozen=True)
class _TiltRule:
    strategy: ValueFunction
    solve: Solve
    checks: Checks | None = None

    def forward(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        return self.solve(problem.bind(leaves), z0)

    def pull(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, z: Tensor, v: Tensor
    ) -> list[Tensor | None]:
        rest = problem.bind([leaf.detach() for leaf in leaves])
        self.solve.compare(None, lambda: rest.gradient(z))
        parts, loose = self.compare(problem, leaves, z, v)
        if self.checks is not None:
            self.checks.loose(loose)
        return parts

    def compare(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z: Tensor, v: Tensor
    ) -> tuple[list[Tensor | None], Tensor]:
        """Return the implicit part for each leaf, and the lanes whose solves do not bear it, shape `lanes`."""
        weight, both = self.strategy.penalty, self.strategy.two_sided
        live = [leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]
        with torch.enable_grad():
            bound = problem.bind(live)
        ahead, behind = bound.tilt(v / weight), bound.tilt(-v / weight) if both else bound
        scale = 0.5 * weight if both else weight
        inputs = [leaf for leaf in live if leaf.requires_grad]
        # A residual r moves the solution like a tilt by r.
        tilt = torch.linalg.vector_norm(v, dim=-1) / weight
        wanted = torch.where(tilt > 0, _SHARE * tilt, torch.inf)
        there, left = self.solve.closely(ahead.detach(), z, wanted)
        here, beside = self.solve.closely(behind.detach(), z, wanted, found=not both)
        with torch.enable_grad():
            values = self._least(ahead, there), self._least(behind, here)
            gap = scale * (values[0] - values[1])
        # One backward pass frees both graphs: a compiled module demands it.
        slopes = torch.autograd.grad(gap, inputs, allow_unused=True) if inputs and gap.requires_grad else ()
        found = iter(slopes or [None] * len(inputs))
        loose = (left + beside > _LOOSE * tilt) & (tilt > 0)
        return [next(found) if leaf.requires_grad else None for leaf in live], loose

    def _least(self, bound: Bound, z: Tensor) -> Tensor:
        """Return the sum over lanes of the least value, attained at z: its derivative in theta is that at z (Danskin).

        A set that moves takes z along, and the tilt with it.
        """
        return bound.penalized(z + self._motion(bound, z)).sum()

    def _motion(self, bound: Bound, z: Tensor) -> Tensor:
        rest = tree.detach(bound.term)
        if not bound.moving:
            return torch.zeros_like(z)
        return bound.motion(rest, bound.tangent(rest, z, bound.detach().gradient(z)), z)
