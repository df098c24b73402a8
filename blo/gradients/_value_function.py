"""The hypergradient from first derivatives alone, by the value function of a tilted lower problem."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._autocast import suspended
from blo._autodiff import live
from blo._parametric_problem import ParametricProblem
from blo._problem_at_theta import ProblemAtTheta
from blo._settings import require_positive
from blo._vectors import irregular, length
from blo.gradients._base import Pulled, Solve, Strategy
from blo.gradients._finer import finer, like
from blo.gradients._once_differentiable import OnceDifferentiableRule

#: The residual requested from the solves, and the one above which the result is not reliable, relative to the one that
#: the tilt makes.
_SHARE, _LOOSE = 1e-6, 1e-2
#: The largest relative change of z that a tilt may cause, for one-sided and for two-sided differences.
_FAR = (0.01, 0.02)
#: The estimated relative error of the difference above which it is reported.
_BENT = 0.05


@dataclass(frozen=True)
class ValueFunction(Strategy):
    """Tilts the lower problem by the upper gradient v = df/dz, and compares the two solutions.

    With `y` the solution of `minimise g(theta, z) + <v, z> / penalty`, the implicit part is estimated by
    `penalty * (dg/dtheta(y) - dg/dtheta(z*))`, whose error is of the order `1/penalty` (Liu et al., NeurIPS 2022,
    BOME; Kwon et al., ICML 2023, F2SA). It takes one or two more lower solves and no second derivative at all, on any
    constraint set and with any penalty term. The residuals of the solves are amplified by `penalty`. So they are
    compared with the residual that the tilt makes at z*, which is `|v| / penalty` unless a curved boundary holds z*: a
    solver with a tolerance must reach a millionth of it, and a `ConvergenceWarning` reports any above a hundredth of
    it.

    If the tilt `v / penalty` would move z by less than the rounding of gradients can resolve, or by more than a
    hundredth of its length (two hundredths if `two_sided`), another penalty is used instead. So the implicit part
    scales with the upper objective, as under loss scaling. You are warned if the solution still does not respond
    linearly to the tilt.

    Args:
        penalty: the weight of the lower problem relative to the upper one, in units of upper over lower objective;
            replaced as described above where rounding or the length of z demands it.
        two_sided: also tilt in the opposite direction and take the central difference, whose error is of the order
            `1/penalty^2`.

    Raises:
        ValueError: if the penalty is not positive.
        StructureError: when the solution is differentiated, for fixed-point problems, and for second derivatives.
    """

    reads_theta_late = False

    penalty: float = 1e3
    two_sided: bool = False

    def __post_init__(self) -> None:
        require_positive(self.penalty, "penalty", "Larger is more exact.")

    def rule(self, problem: ParametricProblem, solve: Solve) -> OnceDifferentiableRule:
        return _TiltRule(self, solve)


@dataclass(frozen=True)
class _TiltRule(OnceDifferentiableRule):
    strategy: ValueFunction
    solve: Solve

    def forward(self, problem: ProblemAtTheta, z0: Tensor) -> Tensor:
        return self.solve(problem, z0)

    def pull(self, problem: ProblemAtTheta, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        both, leaves = self.strategy.two_sided, problem.leaves
        own = live(leaves)
        # The penalty multiplies a difference together with its rounding errors. So autocast is off, and theta is at
        # least as precise as z.
        with torch.enable_grad(), suspended.on():
            untilted = replace(problem.rebind(own), eps=None)
            at, _ = finer(untilted, z) or (untilted, z)
            weight = self._weight(untilted.detach(), z0, z, v)
            ahead, behind = untilted.tilt(v / weight), untilted.tilt(-v / weight) if both else untilted
            fine_ahead, fine_behind = at.tilt(v / weight), at.tilt(-v / weight) if both else at
            scale = 0.5 * weight if both else weight
            inputs = [leaf for leaf in at.leaves if leaf.requires_grad]
            # Residuals are judged by the residual that the tilt itself makes at z.
            tilt = self._made(untilted.detach(), z, v / weight)
            # `closely` takes the smallest. Where v is zero, so is the implicit part, whatever the residual.
            wanted = torch.where(tilt > 0, _SHARE * tilt, torch.inf)
            there, left = self.solve.closely(ahead.detach(), z, wanted)
            # Without a tilt, z is the solution. But if `eps` is set, z was computed under autocast, and the minimum of
            # the objective without autocast lies elsewhere.
            here, beside = self.solve.closely(behind.detach(), z, wanted, found=not both and problem.eps is None)
            # If the solution responds linearly, half the tilt moves it half as far. The residual at that point, under
            # half the tilt, measures the deviation from that.
            centre = 0.5 * (there + here) if both else here
            half = self._off(untilted.tilt(0.5 * v / weight), 0.5 * (there + centre), tilt)
            even = self._off(untilted, centre, tilt) if both else torch.zeros_like(half)
            gap = self._least(ahead, fine_ahead, there) - self._least(behind, fine_behind, here)
            gap = (scale.squeeze(-1) * gap).sum()
            # One backward pass over the difference frees both graphs, which compiled modules require.
            slopes = torch.autograd.grad(gap, inputs, allow_unused=True) if inputs and gap.requires_grad else ()
        found = iter(slopes or [None] * len(inputs))
        # One-sided: with z(t) = z + a t + b t^2 the error is b, four times the deviation b / 4 halfway. Two-sided: a
        # bend on one side only leaves its square, and a bend that is the same on both sides remains.
        error = 4 * half if not both else (2 * even).square() + (4 * half - 2 * even).clamp(min=0)
        loose = ((left + beside > _LOOSE * tilt) | (error > _BENT)) & (tilt > 0)
        parts = like(leaves, [next(found) if leaf.requires_grad else None for leaf in own])
        return Pulled(parts, loose=loose)

    def _weight(self, rest: ProblemAtTheta, z0: Tensor, z: Tensor, v: Tensor) -> Tensor:
        """Return the penalty, or another where the tilt would be lost in rounding or move z too far, `(*lanes, 1)`.

        A tilt moves z by about `|tilt| / curvature`; a difference of gradients measures the curvature along v.
        """
        size, root = length(v), torch.finfo(z.dtype).eps ** 0.5
        span = torch.maximum(length(z), length(z - z0))
        span = torch.where(span > 0, span, 1.0)
        # A relative displacement of sqrt(eps) balances rounding and truncation in a one-sided difference.
        aside = z + root * span * v / torch.where(size > 0, size, 1.0)
        change = length(rest.gradient(aside) - rest.gradient(z)) / root  # the tilt that would move z by its own length
        tilt, far = size / self.strategy.penalty, _FAR[self.strategy.two_sided]
        known = torch.isfinite(change) & (change > 0) & (size > 0)
        # A tilt that moves z by less than sqrt(eps) is lost in the rounding of gradients. Beyond `far` the response of
        # z is not linear enough for a difference.
        chosen = torch.where(known, torch.minimum(torch.maximum(tilt, root * change), far * change), tilt)
        return torch.where(known, size / torch.where(known, chosen, 1.0), self.strategy.penalty)

    def _made(self, rest: ProblemAtTheta, z: Tensor, slope: Tensor) -> Tensor:
        """Return the residual that a tilt of the length of this slope makes at the solution z, shape `lanes`.

        Inside the set it is the length of the slope. If a curved boundary holds z against a strong force, it is far
        smaller. A slope normal to the boundary makes none, so another direction is tried as well; if that makes none
        either, z is a vertex, and no residual of this size moves it.
        """
        size, here = length(slope), rest.gradient(z)
        aside = irregular(z.shape[-1], z).to(z.dtype)
        made = (rest.residual(z, here + way) for way in (slope, size * aside / length(aside)))
        found = torch.maximum(*made)
        rounding = 8 * torch.finfo(z.dtype).eps * length(z, keepdim=False)
        return torch.where(found > rounding, found, size.squeeze(-1))

    def _off(self, problem: ProblemAtTheta, z: Tensor, tilt: Tensor) -> Tensor:
        """Return how far z is from the solution, as a residual in units of that of the tilt, shape `lanes`."""
        rest = problem.detach()
        return rest.residual(z, rest.gradient(z)) / torch.where(tilt > 0, tilt, 1.0)

    def _least(self, solved: ProblemAtTheta, problem: ProblemAtTheta, z: Tensor) -> Tensor:
        """Return the minimum, attained at z, shape `lanes`; its derivative in theta is that at a fixed z (Danskin).

        If the set moves with theta, z moves with its face. The active face is that of the problem that was `solved`.
        """
        # With the penalty term, since its weight may depend on theta.
        return problem.penalized(z + self._motion(solved, problem, z))

    def _motion(self, solved: ProblemAtTheta, problem: ProblemAtTheta, z: Tensor) -> Tensor:
        if not problem.moving:
            return torch.zeros_like(z)
        tangent = solved.tangent(solved.term.detach(), z, solved.detach().gradient(z))
        return problem.motion(problem.term.detach(), tangent, z)
