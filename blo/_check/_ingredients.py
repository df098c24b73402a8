"""The ingredients of the formula, recomputed by differences of first derivatives and of the set's own motion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from blo._check._outcome import Finding, Part
from blo._check._resolve import differences, slope_on_face
from blo._check._slopes import Differences, Slope, along
from blo._term import Tangent
from blo.operators import Hessian
from blo.sets import Set


class Moves(NamedTuple):
    """Derivatives along a direction d of theta, each of shape `(*lanes, n)`.

    Attributes:
        mixed: B d, the change of the lower gradient at fixed z.
        face: N d, the motion of the active face.
        force: G d, the change of the term's force at a fixed point of the face.
    """

    mixed: Tensor
    face: Tensor
    force: Tensor


@dataclass(frozen=True, eq=False)
class Ingredients:
    """The lower problem at the tightly solved point.

    Attributes:
        around: takes the differences.
        v: the upper gradient in z, shape `(*lanes, n)`.
        tangent: the term's tangent space, as the strategy sees it.
        slope: the lower gradient.
        rtol: relative error allowed.
    """

    around: Differences
    v: Tensor
    tangent: Tangent
    slope: Tensor
    rtol: float

    def times_hessian(self, w: Tensor) -> Tensor:
        """Return H w by central differences."""
        return differences(self.around.problem.bind(self.around.leaves).detach(), self.around.best.z, self.slope, w)

    def transposed(self, w: Tensor) -> Tensor:
        """Return H^T w. H is symmetric except for a fixed-point problem, whose Jacobian is assembled."""
        if self.around.problem.symmetric:
            return self.times_hessian(w)
        return (Hessian(self.times_hessian).dense(w).mT @ w.unsqueeze(-1)).squeeze(-1)

    def moves(self, unit: Sequence[Tensor]) -> Moves:
        """Return the derivatives along a direction of theta, by fourth-order central differences."""
        z, h, here = self.around.best.z, self.around.step, self.around.problem_at(unit, 0.0)

        def sides(function: Callable[[float], Tensor]) -> Tensor:
            near, far = function(h) - function(-h), function(2 * h) - function(-2 * h)
            return (8 * near - far) / (12 * h)

        mixed = sides(lambda t: self.around.problem_at(unit, t).gradient(z))
        if not here.moving:
            return Moves(mixed, torch.zeros_like(z), torch.zeros_like(z))

        def motion(t: float) -> Tensor:
            return self.around.problem_at(unit, t).motion(here.term, self.tangent, z)

        def force(t: float) -> Tensor:
            assert self.tangent.force is not None
            # G is the change at a fixed point of the face, so the point moves with the face.
            return self.tangent.force(self.around.problem_at(unit, t).term, z + motion(t))

        return Moves(mixed, sides(motion), torch.zeros_like(z) if self.tangent.force is None else sides(force))

    def tangent_findings(self, slopes: Sequence[Slope]) -> list[Finding]:
        """Compare the tangent with the motion of the re-solved solution."""
        here = self.around.problem_at(slopes[0].unit, 0.0)
        pull = slope_on_face(here, self.tangent, self.around.best.z, self.slope)
        findings = []
        # For a penalty without `force`, `pull` is the natural map, which is zero at a solution whatever P is.
        if self.tangent.force is not None or isinstance(here.term, Set):
            left = self.tangent.project(pull)
            # At an interior solution both vanish, up to the residual of the tight solve.
            best, eps = self.around.best, torch.finfo(pull.dtype).eps
            size = _norm(self.slope)
            slack = 100 * best.residual * (1 + size) + 1e3 * eps * (float(best.unit.max()) + size)
            findings.append(_finding(Part.TANGENT, "P grad g = 0", left, [pull], self.rtol, slack))
        leaves_face, unbalanced = [], []
        for one in slopes:
            moves = self.moves(one.unit)
            inside = one.solution - moves.face
            off = inside - self.tangent.project(inside)
            noise = one.solution_noise
            # dz - N dtheta must be tangent, and solve P (B dtheta + G dtheta + H dz + K (dz - N dtheta)) = 0.
            leaves_face.append(_finding(Part.TANGENT, "P (dz - N dtheta)", off, [one.solution], self.rtol, noise))
            bent, curved = self.times_hessian(one.solution), self.tangent.curve(self.tangent.project(inside))
            rest = self.tangent.project(moves.mixed + bent + curved + moves.force)
            parts = [moves.mixed, bent, curved, moves.force]
            # An error of dz enters this equation multiplied by H, which is estimated along dz.
            stiffness = _norm(bent) / max(_norm(one.solution), 1e-300) + float(self.around.best.unit.max())
            unbalanced.append(
                _finding(Part.TANGENT, "P (B dtheta + (H + K) dz)", rest, parts, self.rtol, 10 * stiffness * noise)
            )
        return [*findings, _worst(leaves_face), _worst(unbalanced)]

    def inverse_finding(self, q: Tensor) -> Finding:
        """Check that the adjoint solves the system, with differences in place of H."""
        target = self.tangent.project(self.v)
        inside = self.tangent.project(q)
        image = self.transposed(inside)
        # The adjoint is in the tangent space: its part outside belongs to the defect, in the unit of H times q.
        outside = self.around.best.unit.unsqueeze(-1) * (q - inside)
        rest = target - self.tangent.project(image + self.tangent.curve(inside)) - outside
        # A central difference has a relative error of about eps^(2/3) at best.
        rounding = 30 * torch.finfo(q.dtype).eps ** (2 / 3) * _norm(image)
        return _finding(Part.INVERSE, "P (H + K) P q - P v", rest, [target], self.rtol, rounding)

    def product_finding(self, product: Callable[[Tensor], Tensor], q: Tensor) -> Finding:
        """Compare the strategy's own product with H with differences."""
        # A product with zero would test nothing.
        w = self.tangent.project(self.v) if not bool(q.any()) else self.tangent.project(q)
        image = self.transposed(w)
        return _finding(Part.INVERSE, "H times a vector", product(w) - image, [image], 10 * self.rtol)

    def cross_finding(self, q: Tensor, cotangents: Sequence[Tensor | None], slopes: Sequence[Slope]) -> Finding:
        """Compare the cross term for the strategy's q with differences."""
        bent, found = self.transposed(q), []
        for one in slopes:
            moves = self.moves(one.unit)
            # -(B + G)^T q + N^T (v - H q) along d, term by term, since the size of the terms bounds their rounding
            # error.
            terms = [self.v * moves.face, -q * moves.mixed, -bent * moves.face, -q * moves.force]
            truth, size = float(sum(t.sum() for t in terms)), float(sum(t.abs().sum() for t in terms))
            error = abs(along(cotangents, one.unit) - truth)
            found.append(_judge(Part.CROSS, "B' q and N' (v - H q)", error, size, 10 * self.rtol))
        return _worst(found)

    def implicit_finding(self, cotangents: Sequence[Tensor | None], slopes: Sequence[Slope]) -> Finding:
        """Compare the implicit part with the motion of the re-solved solution."""
        # A strategy without any cotangent takes zero for the inverse.
        part = Part.IMPLICIT if any(one is not None for one in cotangents) else Part.INVERSE
        found = []
        for one in slopes:
            truth, size = float((self.v * one.solution).sum()), _norm(self.v) * _norm(one.solution)
            error, noise = abs(along(cotangents, one.unit) - truth), _norm(self.v) * one.solution_noise
            found.append(_judge(part, "implicit part", error, size, 10 * self.rtol, noise))
        return _worst(found)

    def direct_findings(self, direct: Sequence[Tensor], slopes: Sequence[Slope]) -> list[Finding]:
        """Compare the upper gradients with differences of the upper objective."""
        problem, around = self.around.problem, self.around
        z, share = around.best.z, around.step / around.length

        def value(unit: Sequence[Tensor], w: Tensor | None, t: float) -> float:
            at = problem.structure.tree(around.moved(unit, t if w is None else 0.0))
            return float(around.upper(at, problem.layout.unravel(z if w is None else z + t * w)))

        def sides(function: Callable[[float], float], h: float) -> tuple[float, float]:
            near, far = function(h) - function(-h), function(2 * h) - function(-2 * h)
            found = (8 * near - far) / (12 * h)
            rounding = 16 * torch.finfo(z.dtype).eps * abs(function(0.0)) / h
            # The distance of the two differences is the error of the second-order one. That of the fourth-order one is
            # about this share of it, see `_share`.
            return found, rounding + abs(near / (2 * h) - found) * share

        in_theta, in_z = [], []
        size = sum(float(part.double().square().sum()) for part in direct) ** 0.5
        for one in slopes:
            truth, noise = sides(partial(value, one.unit, None), around.step)
            error = abs(along(direct, one.unit) - truth)
            in_theta.append(_judge(Part.DIRECT, "df/dtheta", error, max(size, abs(truth)), self.rtol, noise))
            # df/dz enters the slope of F along dz only.
            w = one.solution / max(_norm(one.solution), 1e-300)
            truth, noise = sides(partial(value, one.unit, w), share * max(1.0, _norm(z)))
            error = abs(float((self.v * w).sum()) - truth)
            in_z.append(_judge(Part.DIRECT, "df/dz", error, max(_norm(self.v), abs(truth)), self.rtol, noise))
        return [_worst(in_theta), _worst(in_z)]


def _norm(v: Tensor) -> float:
    return float(v.double().norm())


def _finding(
    part: Part, name: str, difference: Tensor, compared: Sequence[Tensor], rtol: float, noise: float = 0.0
) -> Finding:
    """Compare the norm of a difference with those of what was compared; `noise` is absolute."""
    return _judge(part, name, _norm(difference), sum(_norm(one) for one in compared), rtol, noise)


def _judge(part: Part, name: str, error: float, size: float, rtol: float, noise: float = 0.0) -> Finding:
    """Compare an error with a size, or with the noise if the size is smaller."""
    # With this size, noise adds at most rtol to the tolerance of a relative error.
    size = max(size, noise / rtol, 1e-300)
    return Finding(part, name, error / size, rtol + noise / size)


def _worst(findings: Sequence[Finding]) -> Finding:
    """Return the finding that is furthest from its tolerance."""

    def excess(finding: Finding) -> float:
        # Comparisons with NaN are false, so `max` could pass over it.
        return math.inf if math.isnan(finding.error) else finding.error / finding.tolerance

    return max(findings, key=excess)
