"""The implicit function theorem on a constraint set: one formula for every implicit strategy."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._failures import Checks
from blo._problem import FlatProblem
from blo.gradients._base import Pulled, Solve, Strategy, Trace
from blo.gradients._function import Solution
from blo.gradients._point import Point
from blo.linsolve import LinearSolution
from blo.operators import Hessian, Operator, Restricted


class Stationary(Strategy):
    """Differentiates the optimality conditions at the lower solution.

    With P the projector on the tangent space, K the curvature of the active boundary times its multiplier, and N the
    motion of the active face,

        P (H + K) P q = P v,      implicit part = -B^T q + N^T (v - H q).

    Subclasses say what stands for H and how the system is solved.
    """

    @abc.abstractmethod
    def model(self, hessian: Operator) -> Operator:
        """Return the operator that stands for H."""

    @abc.abstractmethod
    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        """Solve `P (H + K) P q = b` for b in the tangent space, shape `(*lanes, n)`."""

    def trace(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve) -> Trace:
        bound = problem.bind(leaves)
        z = solve(bound.detach(), z0)

        def pullback(v: Tensor, guess: Tensor | None) -> Pulled:
            point = Point(bound, z, leaves)
            linear = self.adjoint(point, v, guess)
            return Pulled(point.cross(linear.x, v), linear.x, linear, point.optimality)

        return Trace(z, pullback)

    def attach(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve, checks: Checks
    ) -> Tensor:
        return Solution.solve(problem, leaves, z0, solve, CheckedRule(self, checks))

    def adjoint(self, point: Point, v: Tensor, guess: Tensor | None) -> LinearSolution:
        """Return the adjoint q at a point."""
        tangent = point.optimality.tangent
        # The projector goes inside the solve: H couples free and active coordinates, so masking the
        # full solution afterwards is a different vector.
        system = Restricted(self.model(Hessian(point.hessian)), tangent)
        return self.invert(system, tangent.project(v), guess)


@dataclass(frozen=True)
class CheckedRule:
    """A stationary strategy inside `Solution` and `Adjoint`, reporting what it meets."""

    strategy: Stationary
    checks: Checks

    def solve(self, problem: FlatProblem, leaves: Sequence[Tensor], z: Tensor, v: Tensor) -> Tensor:
        return self._adjoint(Point(problem.bind(leaves), z, ()), v)

    def pull(self, problem: FlatProblem, leaves: Sequence[Tensor], z: Tensor, v: Tensor) -> Sequence[Tensor | None]:
        live = [leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
        with torch.enable_grad():
            point = Point(problem.bind(live), z, live)
        found = point.cross(self._adjoint(point, v), v)
        if all(part is None for part in found):
            self.checks.constant()
        return found

    def _adjoint(self, point: Point, v: Tensor) -> Tensor:
        linear = self.strategy.adjoint(point, v, None)
        optimality = point.optimality
        self.checks.adjoint(linear, self.strategy.tol, lambda: optimality.residual, lambda: optimality.tangent.counts())
        return linear.x

    def model(self, hessian: Operator) -> Operator:
        return self.strategy.model(hessian)
