"""The implicit function theorem on a constraint set: one formula for every implicit strategy."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blo._bound import Bound
from blo._failures import Checks
from blo._problem import FlatProblem
from blo.gradients._base import Pulled, Solve, Strategy, Trace
from blo.gradients._function import Solution
from blo.gradients._point import Point, TransposedPoint
from blo.gradients._products import Products, point
from blo.linsolve import LinearSolution
from blo.linsolve._base import largest
from blo.operators import Hessian, Operator, Restricted, TangentSpace


class Stationary(Strategy):
    """Differentiates the optimality conditions at the lower solution.

    With P the projector on the tangent space, K the curvature of the active boundary times its multiplier, N the
    motion of the active face and G that of the force which set or penalty exerts, taken along with the face,

        P (H + K) P q = P v,      implicit part = -(B + G)^T q + N^T (v - H q).

    Subclasses say what stands for H and how the system is solved.

    Attributes:
        products: how H and B are multiplied with vectors: `"reverse"`, `"forward"` or `"finite-difference"`.
    """

    products: Products = "reverse"

    @abc.abstractmethod
    def model(self, hessian: Operator) -> Operator:
        """Return the operator that stands for H."""

    @abc.abstractmethod
    def invert(self, system: Restricted, b: Tensor, guess: Tensor | None) -> LinearSolution:
        """Solve `P (H + K) P q = b` for b in the tangent space, shape `(*lanes, n)`."""

    def trace(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve) -> Trace:
        bound = problem.bind(leaves)
        rest = bound.detach()
        z = solve(rest, z0)

        def pullback(v: Tensor, guess: Tensor | None) -> Pulled:
            at = point(self.products, problem, bound, z, leaves)
            solve.compare(at.optimality.slope, lambda: bound.detach().gradient(z))
            solve.confirm(rest, z, at.optimality.slope)
            linear = self.adjoint(at, v, guess)
            q, tangent = linear.x, at.optimality.tangent

            def defect() -> Tensor:
                # A new point: the cross term has freed the graph of the old one, which nothing may keep alive.
                fresh = point(self.products, problem, rest, z, ())
                system = Restricted(Hessian(fresh.hessian), tangent, beside=0.0)
                length: Tensor = torch.linalg.vector_norm(tangent.project(v) - system(q), dim=-1)
                return length

            # Exact products have no error, and no reason to be kept.
            error = (lambda: at.error(q)) if at.estimated else None
            return Pulled(at.cross(q, v), q, linear, at.optimality, error, defect)

        return Trace(z, pullback)

    def attach(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, solve: Solve, checks: Checks
    ) -> Tensor:
        return Solution.solve(problem, leaves, z0, solve, CheckedRule(self, checks, solve))

    def adjoint(self, at: Point, v: Tensor, guess: Tensor | None) -> LinearSolution:
        """Return the adjoint q at a point."""
        tangent = at.optimality.tangent
        hessian = Hessian(at.hessian, symmetric=at.symmetric, squares=at.squares)
        # The projector goes inside the solve: H couples free and active coordinates, so masking the
        # full solution afterwards is a different vector.
        system = Restricted(self.model(hessian), tangent, beside=0.0)
        if tangent.project(v) is v:  # nothing is held
            found = self.invert(system, v, guess)
            return replace(found, noise=at.noise) if at.noise else found
        # In units of v: parts of a tiny vector would be lost in the underflow.
        size, _ = largest(v)
        guess = None if guess is None else tangent.project(guess / size)
        found = self.invert(system, _inside(tangent, v / size), guess)
        return replace(found, x=size * found.x, noise=at.noise)


def _inside(tangent: TangentSpace, v: Tensor) -> Tensor:
    """Return P v, and zero where that is nothing but rounding: another projection takes most of it away."""
    once = tangent.project(v)
    twice = tangent.project(once)
    length, left = (torch.linalg.vector_norm(part, dim=-1, keepdim=True) for part in (once, twice))
    return torch.where(left < 0.5 * length, 0.0, twice)


@dataclass(frozen=True)
class CheckedRule:
    """A stationary strategy inside `Solution` and `Adjoint`, reporting what it meets."""

    strategy: Stationary
    checks: Checks
    lower: Solve

    def solve(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z: Tensor, v: Tensor, transposed: bool = False
    ) -> Tensor:
        bound = problem.bind(leaves)
        if transposed:
            return self._adjoint(bound, TransposedPoint(bound, z), z, v)
        return self._adjoint(bound, point(self.strategy.products, problem, bound, z, ()), z, v)

    def pull(self, problem: FlatProblem, leaves: Sequence[Tensor], z: Tensor, v: Tensor) -> Sequence[Tensor | None]:
        live = [leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
        with torch.enable_grad():
            bound = problem.bind(live)
        at = point(self.strategy.products, problem, bound, z, live)
        found = at.cross(self._adjoint(bound, at, z, v), v)
        self.checks.implicit(found)
        return found

    def _adjoint(self, bound: Bound, at: Point, z: Tensor, v: Tensor) -> Tensor:
        # The caller may have changed what the objective captures, between the solve and its derivative.
        self.lower.compare(at.optimality.slope, lambda: bound.detach().gradient(z))
        linear = self.strategy.adjoint(at, v, None)
        optimality = at.optimality
        limit = self.lower.confirm(bound.detach(), z, optimality.slope)
        counts = optimality.tangent.counts
        self.checks.adjoint(linear, self.strategy.tol, lambda: optimality.residual, counts, limit)
        return linear.x

    def model(self, hessian: Operator) -> Operator:
        return self.strategy.model(hessian)

    def finite(self, parts: Sequence[Tensor | None]) -> None:
        self.checks.gradients(parts)
