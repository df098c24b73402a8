"""The hypergradient from first derivatives alone, by the value function of a tilted lower problem."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo import tree
from blo._autocast import suspended
from blo._autodiff import length
from blo._bound import Bound
from blo._problem import FlatProblem
from blo._settings import require_positive
from blo.gradients._base import Pulled, Solve, Strategy
from blo.gradients._finer import finer, like
from blo.gradients._first_order import FirstOrderRule

#: Residuals that the solves are asked for, and above which they do not bear the result, in units of the tilt.
_SHARE, _LOOSE = 1e-6, 1e-2
#: Relative change of z beyond which no tilt is to move it, to one side and to both.
_FAR = (0.01, 0.02)
#: Estimated relative error of what a tilt shows from which it is reported.
_BENT = 0.05


@dataclass(frozen=True)
class ValueFunction(Strategy):
    """Tilts the lower problem by the upper gradient v = df/dz, and compares the two solutions.

    With `y` the solution of `minimise g(theta, z) + <v, z> / penalty`, the implicit part is estimated by
    `penalty * (dg/dtheta(y) - dg/dtheta(z*))`, whose error is of the order `1/penalty` (Liu et al., NeurIPS 2022,
    BOME; Kwon et al., ICML 2023, F2SA). It takes one or two more lower solves and no second derivative at all, on any
    constraint set and with any penalty term. What the solves leave is amplified by `penalty`: a solver with a tolerance
    is asked for residuals of `1e-6 |v| / penalty`, and a warning says where they stay above a hundredth of the tilt.

    Where the tilt `v / penalty` would move z by less than the rounding of gradients shows, or by more than a hundredth
    of its length (two, if both ways), another penalty takes the place of this one: scaling the upper objective, as
    loss scalers do, scales the implicit part. A warning says where the solution bends under the tilt all the same.

    Args:
        penalty: the weight of the lower problem against the upper one, in units of upper over lower objective, as far
            as rounding and the length of z allow.
        two_sided: also tilt the other way and take the central difference, whose error is of the order `1/penalty^2`.

    Raises:
        ValueError: if the penalty is not positive.
    """

    penalty: float = 1e3
    two_sided: bool = False

    def __post_init__(self) -> None:
        require_positive(self.penalty, "penalty", "Larger is more exact.")

    def rule(self, problem: FlatProblem, solve: Solve) -> FirstOrderRule:
        return _TiltRule(self, solve)


@dataclass(frozen=True)
class _TiltRule(FirstOrderRule):
    strategy: ValueFunction
    solve: Solve

    def forward(self, problem: Bound, z0: Tensor) -> Tensor:
        return self.solve(problem, z0)

    def pull(self, problem: Bound, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        both, leaves = self.strategy.two_sided, problem.leaves
        live = [leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]
        # A difference multiplied by the penalty does not bear the rounding of autocast, nor that of a coarse theta.
        with torch.enable_grad(), suspended():
            bound = replace(problem.rebind(live), eps=None)
            at, _ = finer(bound, z) or (bound, z)
            weight = self._weight(bound.detach(), z0, z, v)
            ahead, behind = bound.tilt(v / weight), bound.tilt(-v / weight) if both else bound
            fine_ahead, fine_behind = at.tilt(v / weight), at.tilt(-v / weight) if both else at
            scale = 0.5 * weight if both else weight
            inputs = [leaf for leaf in at.leaves if leaf.requires_grad]
            # A residual r moves the solution like a tilt by r.
            tilt = (length(v) / weight).squeeze(-1)
            wanted = torch.where(tilt > 0, _SHARE * tilt, torch.inf)
            there, left = self.solve.closely(ahead.detach(), z, wanted)
            here, beside = self.solve.closely(behind.detach(), z, wanted, found=not both and problem.eps is None)
            # The tilt halfway between two others leads halfway where the solution follows along a line.
            centre = 0.5 * (there + here) if both else here
            half = self._off(bound.tilt(0.5 * v / weight), 0.5 * (there + centre), tilt)
            even = self._off(bound, centre, tilt) if both else torch.zeros_like(half)
            gap = self._least(ahead, fine_ahead, there) - self._least(behind, fine_behind, here)
            gap = (scale.squeeze(-1) * gap).sum()
            # One backward pass frees both graphs: a compiled module demands it.
            slopes = torch.autograd.grad(gap, inputs, allow_unused=True) if inputs and gap.requires_grad else ()
        found = iter(slopes or [None] * len(inputs))
        # A bend to one side errs by four times what it is off halfway. Seen from both sides its square is left, and a
        # bend that is alike on both.
        error = 4 * half if not both else (2 * even).square() + (4 * half - 2 * even).clamp(min=0)
        loose = ((left + beside > _LOOSE * tilt) | (error > _BENT)) & (tilt > 0)
        parts = like(leaves, [next(found) if leaf.requires_grad else None for leaf in live])
        return Pulled(parts, loose=loose)

    def _weight(self, rest: Bound, z0: Tensor, z: Tensor, v: Tensor) -> Tensor:
        """Return the penalty, or another where the tilt would be lost in rounding or lead far away, `(*lanes, 1)`.

        A tilt moves z by about its length over the curvature, which is measured along v by a difference of gradients.
        """
        size, root = length(v), torch.finfo(z.dtype).eps ** 0.5
        span = torch.maximum(length(z), length(z - z0))
        span = torch.where(span > 0, span, 1.0)
        aside = z + root * span * v / torch.where(size > 0, size, 1.0)
        change = length(rest.gradient(aside) - rest.gradient(z)) / root  # the tilt that would move z by its own length
        tilt, far = size / self.strategy.penalty, _FAR[self.strategy.two_sided]
        known = torch.isfinite(change) & (change > 0) & (size > 0)
        chosen = torch.where(known, torch.minimum(torch.maximum(tilt, root * change), far * change), tilt)
        return torch.where(known, size / torch.where(known, chosen, 1.0), self.strategy.penalty)

    def _off(self, bound: Bound, z: Tensor, tilt: Tensor) -> Tensor:
        """Return how far z is from the solution, as a residual in units of the tilt, shape `lanes`."""
        rest = bound.detach()
        return rest.residual(z, rest.gradient(z)) / torch.where(tilt > 0, tilt, 1.0)

    def _least(self, solved: Bound, bound: Bound, z: Tensor) -> Tensor:
        """Return the least value, attained at z, shape `lanes`: its derivative in theta is that at z (Danskin).

        A set that moves takes z along, and the tilt with it. Which constraints hold z is seen where it was `solved`.
        """
        return bound.penalized(z + self._motion(solved, bound, z))

    def _motion(self, solved: Bound, bound: Bound, z: Tensor) -> Tensor:
        if not bound.moving:
            return torch.zeros_like(z)
        tangent = solved.tangent(tree.detach(solved.term), z, solved.detach().gradient(z))
        return bound.motion(tree.detach(bound.term), tangent, z)
