"""What a lower solver is."""

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
        """How z lies in the flat tensors: `layout.unravel(z)` is the tree, `layout.ravel(tree)` the tensor."""

    @property
    def theta(self) -> Tree:
        """The upper variable."""

    def at_theta(self, function: Callable[[Tree], Any], name: str, read: Callable[[Any], Any]) -> Any:
        """Return `read(function(theta))`, evaluated once; lane by lane where `vmap` maps over the problem.

        Args:
            function: the setting `name` of a solver.
            name: what to call it.
            read: makes a tensor of what the function returns for one lane; anything else only outside `vmap`.

        Raises:
            StructureError: inside `vmap`, if `read` does not return a tensor.
        """

    def mapped(self, function: Callable[[Tree], Tree], name: str, z: Tensor) -> Tensor:
        """Return what a function from trees like z to trees like z makes of a tensor of shape `(*lanes, n)`.

        Raises:
            StructureError: if it returns anything else, calling that `name`.
        """

    @property
    def carried(self) -> Sequence[Tensor] | None:
        """What the solver left in an earlier call; None where there was none, or it carries nothing."""

    @property
    def stepwise(self) -> bool:
        """Whether each step has an objective of its own, with another minibatch."""

    def at_step(self, step: int | Tensor | tuple[()]) -> Problem:
        """Return the problem whose objective is that of one step; the same one if all steps share the objective.

        Args:
            step: its number from 0, also as an integer of shape `()`; `()` where steps are not counted.
        """

    @property
    def recorded(self) -> bool:
        """Whether the steps are to be differentiated."""

    def gradient(self, z: Tensor) -> Tensor:
        """Return the objective's gradient, or a fixed point's residual `z - f(theta, z)`, shape `(*lanes, n)`."""

    @property
    def followed(self) -> bool:
        """Whether these steps, or the same steps made again, are to be differentiated."""

    @property
    def term(self) -> Term:
        """The constraint set or the penalty."""

    @property
    def symmetric(self) -> bool:
        """Whether there is an objective; False where a fixed point is sought."""

    def value(self, z: Tensor) -> Tensor:
        """Return the objective without a penalty, shape `lanes`."""

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective without a penalty and its gradient, from one evaluation."""

    def hessian(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> H v with the objective's Hessian at z."""

    def gauss_newton(
        self, z: Tensor, products: Literal["reverse", "forward"] = "reverse"
    ) -> Callable[[Tensor], Tensor]:
        """Return v -> J' J v with the Jacobian J of the residuals whose squares the objective sums up at z."""

    def penalized(self, z: Tensor) -> Tensor:
        """Return the objective with its penalty, shape `lanes`."""

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        """Return the proximal point of the penalty for this step, or the nearest point of the constraint set.

        Args:
            z: shape `(*lanes, n)`.
            step: a number or a tensor of shape `(*lanes, 1)`.
        """

    def residual(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return `unit |z - prox(z - slope / unit)|`, shape `lanes`, with the proximal operator for a step `1 / unit`.

        It is in units of the slope whatever the unit, a curvature of shape `(*lanes, 1)`; 1 if None.
        """

    def scale(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return the unit in which `residual` measures there: the one given, where that tells something.

        Where steps of `slope / unit` would be lost in the rounding of z, or lead far out of a small set, it is the
        nearest one where they do not, shape `(*lanes, 1)`.
        """

    def natural(self, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
        """Return `unit (z - prox(z - slope / unit))`, whose length the residual is, shape `(*lanes, n)`."""

    @property
    def eps(self) -> float | None:
        """Unit of rounding of the arithmetic in which the objective is evaluated; None: that of z."""


@dataclass(frozen=True)
class Solution:
    """Where a lower solver stopped.

    Attributes:
        z: the point, shape `(*lanes, n)`.
        residual: `|z - prox(z - gradient)|` at the point, shape `lanes`; None when it was not measured.
        tol: what the residual was asked to reach, a number or shape `lanes`; None when that was not asked for. With a
            tolerance and no residual, the caller measures.
        steps: gradient steps that were made.
        slope: the gradient that the solver last saw at the point, shape `(*lanes, n)`; None when it saw none there.
        floor: lanes that stopped since nothing improved at the rounding of gradients; None when not looked at.
        limit: residual above which the point is not a solution, shape `lanes`, found by the caller; None where it is
            `tol`, or what fixed steps are held to.
        stuck: lanes that stopped since nothing improved, far above the rounding of gradients; None when not looked at.
        random: lanes in which two evaluations of the gradient at one point differ; None when not looked at.
        carried: what the next call continues from.
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

    A solver works on flat tensors, all lanes at once, and never learns how its result will be differentiated. When
    `problem.recorded`, every operation must be differentiable, because `Unrolled` differentiates through it.

    Attributes:
        tol: residual that the solver is asked to reach; None when it measures none.
        may_vary: names of the settings that may be functions of theta.
        carry: what the solver keeps beside the point is carried to the next call.
        takes_batches: each step evaluates `problem.at_step(number of the step)`.
    """

    tol: float | None = None
    carry: bool = False
    may_vary: ClassVar[tuple[str, ...]] = ()
    takes_batches: ClassVar[bool] = False

    @abc.abstractmethod
    def solve(self, problem: Problem, z0: Tensor) -> Solution:
        """Solve from `z0`, shape `(*lanes, n)`, which is used as given and never modified."""
