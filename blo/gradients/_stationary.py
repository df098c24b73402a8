"""The implicit function theorem on a constraint set: one formula for every implicit strategy."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._parametric_problem import ParametricProblem
from blo._problem_at_theta import ProblemAtTheta
from blo._term import Tangent
from blo._vectors import norm
from blo.gradients._base import Pulled, Solve, Strategy
from blo.gradients._function import FunctionRule
from blo.gradients._implicit_part import implicit_part
from blo.gradients._point import Point, TransposedPoint
from blo.gradients._products import Products, point
from blo.linsolve import LinearSolution
from blo.linsolve._space import EUCLIDEAN
from blo.operators import Hessian, Operator, Restricted


class Stationary(Strategy):
    """Differentiates the optimality conditions at the lower solution.

    With P the projector on the tangent space, K the curvature of the active boundary times its multiplier, N the
    motion of the active face with theta, and G the change with theta of the force of the set or penalty at a point
    that moves with the face,

        P (H + K)^T P q = P v,      implicit part = -(B + G)^T q + N^T (v - H^T q).

    Subclasses choose the operator in place of H and how the system is solved.

    Attributes:
        products: how H and B are multiplied with vectors: `"reverse"`, `"forward"` or `"finite-difference"`.
    """

    products: Products = "reverse"
    measures_residual = True

    @property
    def reads_theta_late(self) -> bool:
        """Whether the products have an error, which the report estimates from further evaluations."""
        return self.products == "finite-difference"

    @abc.abstractmethod
    def model(self, hessian: Operator) -> Operator:
        """Return the operator used in place of H."""

    @abc.abstractmethod
    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        """Solve `P (H + K) P q = b` for b in the tangent space, shape `(*lanes, n)`."""

    def stationary(self, problem: ParametricProblem) -> Stationary:
        return self

    def rule(self, problem: ParametricProblem, solve: Solve) -> StationaryRule:
        return StationaryRule(self, solve)

    def adjoint(self, at: Point, v: Tensor, guess: Tensor | None) -> LinearSolution:
        """Return the adjoint q at a point."""
        tangent = at.optimality.tangent
        hessian = Hessian(at.times_hessian, symmetric=at.symmetric, squares=at.squares)
        # The projector goes inside the solve: H couples free and active coordinates, so masking the
        # full solution afterwards is a different vector.
        system = Restricted(self.model(hessian), tangent, beside=0.0)
        inside = tangent.project(v)
        if inside is v:  # no constraint is active
            found = self.invert(system, v, guess)
            return replace(found, noise=at.noise) if at.noise else found
        # Solve for v / max|v|: products with a tiny v would underflow.
        size, _ = EUCLIDEAN.size(v)
        guess = None if guess is None else tangent.project(guess / size)
        b = inside / size if tangent.selects else _inside(tangent, v / size)
        found = self.invert(system, b, guess)
        return replace(found, x=size * found.x, noise=at.noise)


def _inside(tangent: Tangent, v: Tensor) -> Tensor:
    """Return P v, or zero where P v is only rounding error, most of which a second projection removes."""
    # P P v = P v, so a second projection shortens only what the rounding of the first one left.
    once = tangent.project(v)
    twice = tangent.project(once)
    length, left = (norm(part) for part in (once, twice))
    return torch.where(left < 0.5 * length, 0.0, twice)


@dataclass(frozen=True)
class StationaryRule(FunctionRule):
    """The rule of a stationary strategy. It holds no tensors, so that its adjoint can be differentiated in turn."""

    strategy: Stationary
    solve: Solve
    keeps_graph = True
    uses_start = False

    def forward(self, problem: ProblemAtTheta, z0: Tensor) -> Tensor:
        # The formula needs the solution and not the steps, so the steps record no graph of theta.
        return self.solve(problem.detach() if torch.is_grad_enabled() else problem, z0)

    def pull(self, problem: ProblemAtTheta, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        at = point(self.strategy.products, problem, z)
        linear = self.strategy.adjoint(at, v, guess)
        q, tangent, rest = linear.x, at.optimality.tangent, problem.detach()

        def defect() -> Tensor:
            # Build a new point: the cross term has freed the graph of the old one, and no closure may keep it alive.
            fresh = point(self.strategy.products, rest, z)
            system = Restricted(Hessian(fresh.times_hessian), tangent, beside=0.0)
            length: Tensor = torch.linalg.vector_norm(tangent.project(v) - system(q), dim=-1)
            return length

        # Exact products have no error to estimate, so their point need not be kept alive.
        error = (lambda: at.error(q)) if at.estimated else None
        return Pulled(at.cross(q, v), q, linear, at.optimality, error, defect)

    def pull_again(
        self, problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor, z: Tensor, v: Tensor
    ) -> Sequence[Tensor | None]:
        found = implicit_part(self, problem, leaves, z, v)
        self.solve.checks.gradients(found)
        return found

    def adjoint(self, problem: ProblemAtTheta, z: Tensor, v: Tensor, transposed: bool = False) -> Tensor:
        at = TransposedPoint(problem, z) if transposed else point(self.strategy.products, problem, z)
        linear = self.strategy.adjoint(at, v, None)
        self.solve.report_adjoint(problem, linear, at.optimality)
        return linear.x

    def model(self, hessian: Operator) -> Operator:
        return self.strategy.model(hessian)
