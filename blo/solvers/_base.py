"""The interface of lower solvers: the problem that they see, the solution that they return."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from blo._layout import Layout
from blo._term import Term
from blo._types import Tree


class Problem(Protocol):
    """What a solver may use of the lower problem at one theta, on flat tensors of shape `(*lanes, n)`."""

    @property
    def layout(self) -> Layout:
        """The layout of z: `layout.unravel(z)` returns the tree, `layout.ravel(tree)` the flat tensor."""

    @property
    def theta(self) -> Tree:
        """The upper variable."""

    def at_theta(self, function: Callable[[Tree], Any], name: str, read: Callable[[Any], Any]) -> Any:
        """Return `read(function(theta))`, which is evaluated once, and for each lane separately under `vmap`.

        Args:
            function: a setting of the solver that is a function of theta.
            name: the name of this setting, for error messages.
            read: converts the function's result for one lane to a tensor. Outside `vmap` it may return any object.

        Raises:
            StructureError: under `vmap`, if `read` does not return a tensor.
        """

    def mapped(self, function: Callable[[Tree], Tree], name: str, z: Tensor) -> Tensor:
        """Apply a function from trees like z to trees like z to a tensor of shape `(*lanes, n)`.

        Raises:
            StructureError: if the result is not a tree like z; the message calls it `name`.
        """

    @property
    def carried(self) -> Sequence[Tensor] | None:
        """The tensors that the solver stored in an earlier call; None if there was none or it stores nothing."""

    @property
    def stepwise(self) -> bool:
        """Whether each step has its own objective, with another minibatch."""

    def at_step(self, step: int | Tensor | tuple[()]) -> Problem:
        """Return the problem with the objective of one step; the same problem if all steps share one objective.

        Args:
            step: the number of the step, from 0, as an int or an integer tensor of shape `()`; the empty tuple `()` if
                the solver does not count steps.
        """

    @property
    def recorded(self) -> bool:
        """Whether the solve will be differentiated, so that gradients keep their graph."""

    def gradient(self, z: Tensor) -> Tensor:
        """Return the objective's gradient, or a fixed point's residual `z - f(theta, z)`, shape `(*lanes, n)`."""

    @property
    def followed(self) -> bool:
        """Whether these steps will be differentiated, in this solve or when they are repeated."""

    @property
    def term(self) -> Term:
        """The constraint set or the penalty."""

    @property
    def symmetric(self) -> bool:
        """Whether the problem has an objective; False for a fixed-point problem."""

    def value(self, z: Tensor) -> Tensor:
        """Return the objective without the penalty, shape `lanes`."""

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective without the penalty and its gradient, from one evaluation."""

    def hessian(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> H v with the Hessian H of the objective at z."""

    def gauss_newton(
        self, z: Tensor, products: Literal["reverse", "forward"] = "reverse"
    ) -> Callable[[Tensor], Tensor]:
        """Return v -> J' J v with the Jacobian J, at z, of the residuals of a least-squares problem."""

    def penalized(self, z: Tensor) -> Tensor:
        """Return the objective with its penalty, shape `lanes`."""

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        """Return the proximal point of the penalty for this step, or the nearest point of the constraint set.

        Args:
            z: shape `(*lanes, n)`.
            step: a number or a tensor of shape `(*lanes, 1)`.
        """

    def residual(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return `unit |z - prox(z - slope / unit)|`, shape `lanes`; the proximal operator has the step `1 / unit`.

        `slope` is the gradient at z. The residual has the unit of the gradient for every `unit`, a curvature of shape
        `(*lanes, 1)`; None means 1.
        """

    def scale(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return the unit that `residual` uses at z, shape `(*lanes, 1)`.

        This is the given unit, except where a step `slope / unit` would be lost in the rounding of z or would lead far
        out of a small set. There it is the nearest unit with a step of suitable length.
        """

    def natural(self, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
        """Return `unit (z - prox(z - slope / unit))`, shape `(*lanes, n)`; its length is the residual."""

    @property
    def eps(self) -> float | None:
        """Machine epsilon of the arithmetic in which the objective is evaluated; None means that of z."""


@dataclass(frozen=True)
class Solution:
    """The result of a lower solve.

    Attributes:
        z: the last iterate, shape `(*lanes, n)`.
        residual: `|z - prox(z - gradient)|` at z, shape `lanes`; None if the solver did not measure it.
        tol: the tolerance for the residual, a number or a tensor of shape `lanes`; None for a fixed number of steps. If
            there is a tolerance but no residual, the caller measures the residual.
        steps: the number of gradient steps.
        slope: the gradient that the solver computed at z, shape `(*lanes, n)`; None if it computed none there.
        floor: the lanes that stopped because the residual no longer decreased and was near the rounding error of the
            gradient; None if this was not tested.
        limit: the residual above which z is not accepted as a solution, shape `lanes`; the caller sets it. None means
            `tol`, or the default for a fixed number of steps.
        stuck: the lanes that stopped because the residual no longer decreased, although it was far above the rounding
            error of the gradient; None if this was not tested.
        random: the lanes in which two evaluations of the gradient at one point differ; None if this was not tested.
        carried: the tensors from which the next call continues.
    """

    z: Tensor
    residual: Tensor | None
    tol: Tensor | float | None
    steps: int
    slope: Tensor | None = None
    floor: Tensor | None = None
    random: Tensor | None = None
    limit: Tensor | None = None
    carried: Sequence[Tensor] = ()
    stuck: Tensor | None = None


class Solver(abc.ABC):
    """Finds a minimiser of a lower problem.

    A solver works on flat tensors with all lanes at once, and does not know how its result will be differentiated. If
    `problem.recorded`, every operation must be differentiable, because `Unrolled` differentiates through it.

    Attributes:
        tol: the tolerance for the residual; None if the solver does not measure residuals.
        may_vary: the names of the settings that may be functions of theta.
        carry: whether the next call continues from the solver's state (momentum, say) as well as from z.
        takes_batches: whether each step evaluates `problem.at_step(number of the step)`.
        confirms: whether a solver with a `tol` itself tests that its result is a solution, with the curvature and the
            rounding of the gradient; otherwise an implicit strategy makes this test.
        takes_start: whether the result is the start itself: `fit` then raises an error, since theta moves the solution.
    """

    tol: float | None = None
    carry: bool = False
    may_vary: ClassVar[tuple[str, ...]] = ()
    takes_batches: ClassVar[bool] = False
    confirms: ClassVar[bool] = False
    takes_start: ClassVar[bool] = False

    @abc.abstractmethod
    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        """Solve from the start `z0`, shape `(*lanes, n)`, and do not modify it."""
