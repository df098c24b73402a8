"""What a gradient strategy is."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from blo._bound import Bound, residual
from blo._failures import Checks
from blo._problem import FlatProblem
from blo._term import Tangent, Term
from blo._types import Tree
from blo.linsolve import LinearSolution

__all__ = ["Optimality", "Pulled", "Rule", "Snapshot", "Solve", "Steps", "Strategy", "Watch", "distance"]


class Snapshot(Protocol):
    """The state of a solver between two steps: a tree of tensors, with the lanes in front.

    Attributes:
        z: the current point, shape `(*lanes, n)`.
        resting: which lanes make no further step, shape `lanes`.
    """

    @property
    def z(self) -> Tensor: ...
    @property
    def resting(self) -> Tensor: ...


#: Called with the number of steps made so far and the state, before each further step.
Watch: TypeAlias = Callable[[int, Any], None]


class Steps(Protocol):
    """The steps of the lower solver, made again one by one."""

    def begin(self, problem: Bound, z0: Tensor) -> Snapshot:
        """Return the state that the steps of a solve begin from."""

    def restart(self, problem: Bound, state: Any) -> Snapshot:
        """Return a state whose point is a constant and whose slope there depends on theta."""

    def advance(self, problem: Bound, state: Any, first: int, steps: int) -> Snapshot:
        """Return the state after the `steps` steps from number `first` on, from the state before them."""

    def answer(self, state: Any) -> Tensor:
        """Return the solution that a last state stands for."""


class Solve(Protocol):
    """The lower solve as a callable: a strategy knows no solver."""

    @property
    def checks(self) -> Checks:
        """What to do with what is found."""

    @property
    def idle(self) -> bool:
        """Whether the solve made no step from a start that is a constant, and has reported that."""

    @property
    def steps(self) -> Steps:
        """The steps of the solver.

        Raises:
            StructureError: if it has none that can be repeated.
        """

    def __call__(self, problem: Bound, z0: Tensor, watch: Watch | None = None) -> Tensor:
        """Return the solution, shape `(*lanes, n)`, with its graph when `problem.recorded`, and report on it.

        Raises:
            StructureError: if there is something to watch and the solver has no steps that can be repeated.
        """

    def quietly(self, problem: Bound, z0: Tensor) -> Tensor:
        """Solve likewise without a report: a further solve in the service of a derivative."""

    def closely(self, problem: Bound, z0: Tensor, wanted: Tensor, *, found: bool = False) -> tuple[Tensor, Tensor]:
        """Solve quietly, to residuals of `wanted` where the solver has a tolerance that is larger.

        Args:
            problem: at one theta.
            z0: where to start, shape `(*lanes, n)`.
            wanted: residuals, shape `lanes`.
            found: z0 is what the solver has found for this problem, which is improved by a smaller tolerance alone.

        Returns:
            The solution, shape `(*lanes, n)`, and its residual, shape `lanes`; zero where nothing is to be measured.
        """

    def report(self, problem: Bound, z: Tensor, pulled: Pulled) -> None:
        """Report all that the implicit part at the solution z rests on, and whether it is finite."""

    def report_adjoint(self, problem: Bound, linear: LinearSolution, optimality: Optimality) -> None:
        """Report all that an adjoint rests on."""


def distance(found: Tensor, again: Tensor, start: Tensor) -> Tensor:
    """Return how far `again` is from `found`, beside the size of that and of the way from `start`, shape `lanes`."""
    apart, size, way = (torch.linalg.vector_norm(v.detach(), dim=-1) for v in (again - found, found, found - start))
    return torch.where(apart == 0, 0.0, apart / torch.maximum(size, way))


@dataclass(frozen=True)
class Optimality:
    """First-order optimality at a lower solution.

    Attributes:
        z: the solution, shape `(*lanes, n)`.
        slope: the objective's gradient there.
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
    """What a strategy makes of the upper gradient v = df/dz.

    Attributes:
        cotangents: the implicit part for each leaf of theta, None where theta has no influence.
        q: the adjoint, shape `(*lanes, n)`; None for strategies without one.
        linear: how the linear system was solved.
        optimality: the conditions that the formula rests on.
        defect: measures `|P v - P (H + K) P q|`, shape `lanes`, with the true H and without damping, when asked.
        error: measures the relative error of the cross product when asked; None or returns None when exact.
        loose: lanes in which further solves stopped too early for the derivative that rests on them, shape `lanes`.
        apart: how far from z steps that were made again led, relatively, shape `lanes`.
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
    """A strategy at work in one call: how it solves, and how it differentiates what it has solved.

    Attributes:
        solve: solves the lower problem.
        live: its problems keep the graph to the leaves of theta.
        starts: `pull` looks at the start of the solve.
    """

    solve: Solve
    live: bool = False
    starts: bool = True

    @abc.abstractmethod
    def forward(self, problem: Bound, z0: Tensor) -> Tensor:
        """Return the lower solution, shape `(*lanes, n)`; with its graph if it is recorded."""

    @abc.abstractmethod
    def pull(self, problem: Bound, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        """Return `(dz/dtheta)^T v` for the leaves of the problem; asked only about problems that it has solved.

        Args:
            problem: at the theta of the solve.
            z0: the start of the solve, shape `(*lanes, n)`.
            z: what `forward` returned.
            v: the upper gradient in z, of z's shape.
            guess: of the adjoint.
        """

    @abc.abstractmethod
    def attach(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        """Return the lower solution as a function of the leaves, differentiable under any transform."""

    def bind(self, problem: FlatProblem, leaves: Sequence[Tensor]) -> Bound:
        """Return the problem at these leaves as this rule needs it."""
        return problem.bind(leaves if self.live else [leaf.detach() for leaf in leaves])


class Strategy(abc.ABC):
    """How the lower solution's dependence on theta is differentiated.

    Attributes:
        tol: relative residual of the adjoint system above which it is reported as unconverged; None for 1.
        expects_theta: whether an implicit part that is zero by definition deserves a warning; if not, none is looked
            for, and the solution is a constant.
        follows: what is differentiated are the steps of the solver, not the solution.
        recorded: torch records these steps.
        samples: the steps as they were made are all that counts, so that their objective may be random.
        measures: the pullback measures the lower residual, which the solve may leave to it.
        start: a function of theta that returns where the solver starts, or None.
    """

    expects_theta: bool = True
    follows: bool = False
    measures: bool = False
    start: Callable[[Tree], Tree] | None = None

    @property
    def tol(self) -> float | None:
        """As above."""
        return 1e-6

    @property
    def recorded(self) -> bool:
        """As above."""
        return False

    @property
    def samples(self) -> bool:
        """As above."""
        return False

    @abc.abstractmethod
    def rule(self, problem: FlatProblem, solve: Solve) -> Rule:
        """Return the rule for one call, which solves by `solve`."""
