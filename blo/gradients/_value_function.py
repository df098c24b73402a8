"""The hypergradient from first derivatives alone, by the value function of a tilted lower problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import add
from blo._bound import Bound
from blo._failures import Checks
from blo._problem import FlatProblem
from blo._settings import require_positive
from blo.gradients._base import Pulled, Solve, Strategy, Trace
from blo.gradients._first_order import FirstOrder


@dataclass(frozen=True)
class ValueFunction(Strategy):
    """Tilts the lower problem by the upper gradient v = df/dz, and compares the two solutions.

    With `y` the solution of `minimise g(theta, z) + <v, z> / penalty`, the implicit part is estimated by
    `penalty * (dg/dtheta(y) - dg/dtheta(z*))`, whose error is of the order `1/penalty` (Liu et al., NeurIPS 2022,
    BOME; Kwon et al., ICML 2023, F2SA). It takes one or two more lower solves and no second derivative at all, on any
    constraint set and with any penalty term. The tolerance of the solver is amplified by `penalty`: ask for one well
    below `1/penalty^2`. In single precision `penalty` times the rounding of gradients, about a percent at 1e3, is the
    best there is.

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
        return Trace(z, lambda v, guess: Pulled(rule.pull(problem, leaves, z0, z, v)))

    def attach(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve, checks: Checks
    ) -> Tensor:
        return FirstOrder.solve(problem, _TiltRule(self, solve), z0, leaves, checks)


@dataclass(frozen=True)
class _TiltRule:
    strategy: ValueFunction
    solve: Solve

    def forward(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        return self.solve(problem.bind(leaves), z0)

    def pull(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, z: Tensor, v: Tensor
    ) -> list[Tensor | None]:
        weight = self.strategy.penalty
        live = [leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]
        with torch.enable_grad():
            bound = problem.bind(live)
        ahead, behind = bound.tilt(v / weight), bound.tilt(-v / weight) if self.strategy.two_sided else bound
        scale = 0.5 * weight if self.strategy.two_sided else weight
        inputs = [leaf for leaf in live if leaf.requires_grad]
        up = self._slope(ahead, self.solve.quietly(ahead.detach(), z), scale, inputs)
        there = self.solve.quietly(behind.detach(), z) if self.strategy.two_sided else z
        down = self._slope(behind, there, -scale, inputs)
        found = iter([add(a, b) for a, b in zip(up, down, strict=True)])
        return [next(found) if leaf.requires_grad else None for leaf in live]

    def _slope(self, bound: Bound, z: Tensor, scale: float, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Return scale times the derivative in theta of the least value, which is attained at z (Danskin).

        A set that moves takes z along, and the tilt with it.
        """
        with torch.enable_grad():
            value = bound.penalized(z + self._motion(bound, z)).sum() * scale
        if not inputs or not value.requires_grad:
            return [None] * len(inputs)
        return list(torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True))

    def _motion(self, bound: Bound, z: Tensor) -> Tensor:
        rest = tree.detach(bound.term)
        if not bound.moving:
            return torch.zeros_like(z)
        return bound.motion(rest, bound.tangent(rest, z, bound.detach().gradient(z)), z)
