"""Slopes of F and of the lower solution along random directions of theta, by fourth-order central differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._check._resolve import Resolved, resolve
from blo._parametric_problem import ParametricProblem
from blo._problem_at_theta import ProblemAtTheta
from blo._types import Tree

#: How often a displacement is divided by four at most.
_ROUNDS = 6


@dataclass(frozen=True, eq=False)
class Slope:
    """Derivatives along one direction of theta.

    Attributes:
        unit: the direction, leaf by leaf.
        value: dF.
        value_noise: the uncertainty of `value`.
        solution: dz*, shape `(*lanes, n)`.
        solution_noise: the uncertainty of `solution`, in the 2-norm over all lanes.
        resolved: the largest residual of the solves.
        step: displacement of theta over which they were measured.
        length: the length of theta that the displacement belongs to.
        steep: whether F is so nonlinear over the step that a shorter one may be more accurate, or not finite.
    """

    unit: list[Tensor]
    value: float
    value_noise: float
    solution: Tensor
    solution_noise: float
    resolved: float
    step: float
    length: float
    steep: bool


@dataclass(frozen=True, eq=False)
class Differences:
    """Takes differences in theta around a tightly solved problem.

    Attributes:
        upper: the upper objective.
        problem: the lower problem.
        leaves: theta, detached.
        best: the solution there.
        step: displacement along a unit direction of theta.
        length: the length of theta that the displacement belongs to: the larger of 1 and |theta|, or |theta|.
    """

    upper: Callable[[Tree, Tree], Tensor]
    problem: ParametricProblem
    leaves: list[Tensor]
    best: Resolved
    step: float
    length: float

    def moved(self, unit: Sequence[Tensor], t: float) -> list[Tensor]:
        """Return theta displaced by t along a direction; leaves that are not floating point stay."""
        return [p + t * d if p.is_floating_point() else p for p, d in zip(self.leaves, unit, strict=True)]

    def problem_at(self, unit: Sequence[Tensor], t: float) -> ProblemAtTheta:
        """Return the lower problem there."""
        return self.problem.bind(self.moved(unit, t)).detach()

    def slope(self, unit: list[Tensor], curvature: float) -> Slope:
        """Measure along a unit direction, over shorter displacements as long as these lower the noise.

        Args:
            unit: of norm one over all leaves.
            curvature: norm of the upper gradient in z, by which errors of solutions enter F.
        """
        found = self._shortened(unit, curvature, self.step, self.length)
        size = norm(self.leaves)
        if found[-1].steep and 0 < size < self.length:
            # Theta may be in a small unit, in which a displacement relative to 1 is far too long.
            found += self._shortened(unit, curvature, self.step * size / self.length, size)
        return found[-1] if not found[-1].steep else min(found, key=_relative_noise)

    def _shortened(self, unit: list[Tensor], curvature: float, h: float, length: float) -> list[Slope]:
        found = [self._slope(unit, curvature, h, length)]
        while found[-1].steep and math.isfinite(found[-1].value_noise) and len(found) <= _ROUNDS:
            found.append(self._slope(unit, curvature, found[-1].step / 4, length))
        return found

    def _slope(self, unit: list[Tensor], curvature: float, h: float, length: float) -> Slope:
        eps = torch.finfo(self.best.z.dtype).eps
        solved: dict[int, Resolved] = {}
        values: dict[int, float] = {}
        for times in (1, -1, 2, -2):
            at = self.moved(unit, times * h)
            solved[times] = resolve(self.problem.bind(at).detach(), self.best.z)
            z = self.problem.layout.unravel(solved[times].z)
            values[times] = float(self.upper(self.problem.structure.tree(at), z))
        near, far = values[1] - values[-1], values[2] - values[-2]
        value = (8 * near - far) / (12 * h)
        z_near, z_far = solved[1].z - solved[-1].z, solved[2].z - solved[-2].z
        solution = (8 * z_near - z_far) / (12 * h)
        # Three errors: of the tight solves, of the rounding of F, and of the truncation, which the second-order and the
        # fourth-order difference together estimate.
        # The weights of the four solves, (8 + 8 + 1 + 1) / 12, add up to 1.5.
        left = 1.5 * max(one.error for one in solved.values()) / h
        # Displaced thetas are rounded as well, by eps |theta|, and F changes with them by its slope.
        rounding = eps * (16 * max(abs(v) for v in values.values()) + norm(self.leaves) * abs(value)) / h
        share = _share(abs(near / (2 * h) - value), max(abs(value), abs(far) / (4 * h)), h / length)
        truncation = abs(near / (2 * h) - value) * share
        z_gap, z_size = (
            float((z_near / (2 * h) - solution).norm()),
            max(float(solution.norm()), float(z_far.norm()) / h),
        )
        noise = rounding + truncation + curvature * left
        return Slope(
            unit,
            value,
            noise,
            solution,
            16 * eps * float(self.best.z.norm()) / h + z_gap * _share(z_gap, z_size, h / length) + left,
            max(one.residual for one in solved.values()),
            h,
            length,
            # A shorter step lowers the truncation error only; the others are divided by h.
            (share > h / length and truncation > rounding + curvature * left) or not math.isfinite(noise),
        )


def _share(gap: float, size: float, least: float) -> float:
    """Return the error of a fourth-order difference relative to `gap`, the error of the second-order difference.

    For a function of theta that varies over the length to which the displacement belongs, it is the displacement over
    this length, `least`; where the gap is large, the function varies faster.
    """
    return max(least, min(1.0, 2 * gap / size)) if size else least


def _relative_noise(one: Slope) -> float:
    found = one.value_noise / max(abs(one.value), 1e-300)
    return math.inf if math.isnan(found) else found


def norm(leaves: Sequence[Tensor]) -> float:
    """Return the 2-norm over all leaves."""
    found: float = sum(float(leaf.double().square().sum()) for leaf in leaves) ** 0.5
    return found


def units(leaves: Sequence[Tensor], number: int, seed: int) -> list[list[Tensor]]:
    """Draw directions of norm 1 over all floating point leaves; they are zero on the others."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        # In double precision on the CPU, so that a seed gives the same directions for every dtype and device.
        drawn = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64, device="cpu") for leaf in leaves]
        drawn = [d if p.is_floating_point() else torch.zeros_like(d) for d, p in zip(drawn, leaves, strict=True)]
        size = sum(d.pow(2).sum() for d in drawn) ** 0.5
        found.append([(d / size).to(leaf) for d, leaf in zip(drawn, leaves, strict=True)])
    return found


def along(parts: Sequence[Tensor | None], unit: Sequence[Tensor]) -> float:
    """Return the inner product of a gradient, None standing for zero, with a direction."""
    pairs = zip(parts, unit, strict=True)
    return float(sum(float((g.double() * d.double()).sum()) for g, d in pairs if g is not None))
