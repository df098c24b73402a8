"""The interface of gradient strategies, and the interface through which they run the lower solver."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from blo._failures import Checks
from blo._natural_map import residual
from blo._parametric_problem import ParametricProblem
from blo._problem_at_theta import ProblemAtTheta
from blo._term import Tangent, Term
from blo._types import Tree
from blo.linsolve import LinearSolution

if TYPE_CHECKING:  # a subclass of `Strategy`
    from blo.gradients._stationary import Stationary

__all__ = ["Optimality", "Pulled", "Rule", "Snapshot", "Solve", "Steps", "Strategy", "Watch", "distance"]


class Snapshot(Protocol):
    """The state of a solver between two steps: a tree of tensors with leading lane axes.

    Attributes:
        z: the current point, shape `(*lanes, n)`.
        endless: whether no lane stops before the last step.
        resting: the lanes that make no further step, booleans of shape `lanes`.
    """

    @property
    def z(self) -> Tensor: ...
    @property
    def endless(self) -> bool: ...
    @property
    def resting(self) -> Tensor: ...


#: Called with the number of steps made so far and the state, before each further step.
Watch: TypeAlias = Callable[[int, Any], None]


class Steps(Protocol):
    """Repeats single steps of the lower solver."""

    def begin(self, problem: ProblemAtTheta, z0: Tensor) -> Snapshot:
        """Return the state before the first step."""

    def restart(self, problem: ProblemAtTheta, state: Any) -> Snapshot:
        """Return the state with its point held constant and the gradient there as a function of theta."""

    def advance(self, problem: ProblemAtTheta, state: Any, first: int, steps: int) -> Snapshot:
        """Return the state after `steps` more steps, the first of which has the number `first`."""

    def answer(self, state: Any) -> Tensor:
        """Return the solution that belongs to the last state."""


class Solve(Protocol):
    """Runs the lower solver and reports. Strategies depend on this interface, not on solver classes."""

    @property
    def checks(self) -> Checks:
        """The policy for problems that are found."""

    @property
    def idle(self) -> bool:
        """Whether the solver made no step from a constant start, so that there is nothing to unroll."""

    @property
    def steps(self) -> Steps:
        """Repeats steps of the solver.

        Raises:
            StructureError: if the solver is not iterative.
        """

    def __call__(self, problem: ProblemAtTheta, z0: Tensor, watch: Watch | None = None) -> Tensor:
        """Return the solution, shape `(*lanes, n)`, with its graph when `problem.recorded`, and report on it.

        Raises:
            StructureError: if `watch` is given and the solver is not iterative.
        """

    def quietly(self, problem: ProblemAtTheta, z0: Tensor) -> Tensor:
        """Solve without reporting convergence, for an extra solve that a derivative needs."""

    def closely(
        self, problem: ProblemAtTheta, z0: Tensor, wanted: Tensor, *, found: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Solve to the residuals `wanted` if the tolerance of the solver is larger; do not report convergence.

        Args:
            problem: at one theta.
            z0: the start, shape `(*lanes, n)`.
            wanted: residuals, shape `lanes`.
            found: z0 is already the solver's solution; solve again only for a smaller tolerance.

        Returns:
            The solution, shape `(*lanes, n)`, and its residual, shape `lanes`; zero if checks are off.
        """

    def report(self, problem: ProblemAtTheta, z: Tensor, pulled: Pulled) -> None:
        """Check every condition that the implicit part at the solution z relies on, and that it is finite."""

    def report_adjoint(self, problem: ProblemAtTheta, linear: LinearSolution, optimality: Optimality) -> None:
        """Check every condition that the adjoint relies on."""


def distance(found: Tensor, again: Tensor, start: Tensor) -> Tensor:
    """Return `|again - found| / max(|found|, |found - start|)`, shape `lanes`; zero where the two are equal."""
    # Near zero the length of z is no scale for its error. The way from the start is one there.
    apart, size, way = (torch.linalg.vector_norm(v.detach(), dim=-1) for v in (again - found, found, found - start))
    return torch.where(apart == 0, 0.0, apart / torch.maximum(size, way))


@dataclass(frozen=True)
class Optimality:
    """First-order optimality at a lower solution.

    Attributes:
        z: the solution, shape `(*lanes, n)`.
        slope: the objective's gradient there, or a fixed point's residual, shape `(*lanes, n)`.
        term: the constraint set or the penalty.
        tangent: its tangent space there.
    """

    z: Tensor
    slope: Tensor
    term: Term
    tangent: Tangent

    @property
    def residual(self) -> Tensor:
        """`|z - prox(z - gradient)|`, shape `lanes`."""
        return residual(self.term, self.z, self.slope)


@dataclass(frozen=True)
class Pulled:
    """The upper gradient v = df/dz, pulled back to theta by a strategy.

    Attributes:
        cotangents: the implicit part for each leaf of theta, None where theta has no influence.
        q: the adjoint, shape `(*lanes, n)`; None for strategies without one.
        linear: how the linear system was solved.
        optimality: the optimality conditions at the solution, which the formula differentiates.
        defect: computes `|P v - P (H + K) P q|`, shape `lanes`, with the true H and without damping.
        error: estimates the relative error of the cross product; None, or returns None, if it is exact.
        loose: lanes in which an extra solve stopped too early for the derivative computed from it, shape `lanes`.
        apart: relative distance between z and the end of the steps when they were repeated, shape `lanes`.
    """

    cotangents: Sequence[Tensor | None]
    q: Tensor | None = None
    linear: LinearSolution | None = None
    optimality: Optimality | None = None
    error: Callable[[], float | None] | None = None
    defect: Callable[[], Tensor] | None = None
    loose: Tensor | None = None
    apart: Tensor | None = None


class Rule(abc.ABC):
    """One call of a strategy: it solves the lower problem and differentiates the solution.

    `value_and_hypergrad` calls `forward` and `pull`. `argmin` calls `attach`; a backward pass through its result calls
    `pull`, or `FunctionRule.pull_again` if it may itself be differentiated or runs under a `torch.func` transform, and
    neither if torch has recorded the steps (`Unrolled`) or the solution is a constant (`Zero`).

    Attributes:
        solve: runs the lower solver.
        keeps_graph: the problems given to `forward` and `pull` keep the graph of theta.
        uses_start: `pull` reads `z0`, which must then be kept for the backward pass.
    """

    solve: Solve
    keeps_graph: bool = False
    uses_start: bool = True

    @abc.abstractmethod
    def forward(self, problem: ProblemAtTheta, z0: Tensor) -> Tensor:
        """Return the lower solution, shape `(*lanes, n)`."""

    @abc.abstractmethod
    def pull(self, problem: ProblemAtTheta, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        """Return `(dz/dtheta)^T v` for every leaf of theta. `forward` has solved the problem before.

        Args:
            problem: at the theta of the solve.
            z0: the start of the solve, shape `(*lanes, n)`.
            z: what `forward` returned.
            v: the upper gradient in z, of z's shape.
            guess: a guess of the adjoint, of z's shape.
        """

    @abc.abstractmethod
    def attach(self, problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        """Return the lower solution as a function of the leaves of theta that torch differentiates."""

    def bind(self, problem: ParametricProblem, leaves: Sequence[Tensor]) -> ProblemAtTheta:
        """Return the problem at these leaves of theta, with their graph if `keeps_graph`."""
        return problem.bind(leaves if self.keeps_graph else [leaf.detach() for leaf in leaves])


class Strategy(abc.ABC):
    """How the lower solution is differentiated with respect to theta.

    Attributes:
        expects_theta: theta should influence the solution, and a warning says so if it does not. If False, the
            strategy treats the solution as a constant: the upper gradient in z is not computed, and `pull` gets zeros.
        unrolls: the strategy differentiates the steps of the solver, not the solution.
        measures_residual: `pull` measures the lower residual, so the solve need not.
        start: a function of theta that returns the start of the solver, or None.
    """

    expects_theta: bool = True
    unrolls: bool = False
    measures_residual: bool = False
    start: Callable[[Tree], Tree] | None = None

    @property
    def tol(self) -> float | None:
        """Relative residual of the adjoint system above which a warning is given; None for 1."""
        return 1e-6

    @property
    def recorded(self) -> bool:
        """Whether torch records the steps of the solver and differentiates them."""
        return False

    @property
    def reads_theta_late(self) -> bool:
        """Whether a report evaluates functions of theta when it is read: `value_and_hypergrad` then copies theta."""
        return True

    @property
    def allows_random(self) -> bool:
        """Whether a lower objective may draw random numbers, because no step is evaluated twice."""
        return False

    def stationary(self, problem: ParametricProblem) -> Stationary | None:
        """Return the implicit strategy that differentiates this problem, whose products and inverse can be checked.

        None for a strategy without such products. A strategy that wraps an implicit one returns the wrapped strategy.
        """
        return None

    @abc.abstractmethod
    def rule(self, problem: ParametricProblem, solve: Solve) -> Rule:
        """Return the rule for one call, which runs the lower solver through `solve`."""
