"""The lower problem at one theta, on flat tensors, for solvers and strategies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import plain, transforms_active, value_and_gradient
from blo._curvature import Place, curvature_along_residual
from blo._layout import Layout
from blo._natural_map import natural, residual, scale
from blo._norms import third_derivatives
from blo._objective import FixedPointMap, LinearSlice, Slice, TiltedSlice
from blo._second_order import gauss_newton_products, hessian_products
from blo._term import Tangent, Term
from blo._types import Tree
from blo.errors import StructureError
from blo.penalties import Penalty


class Parametric(Protocol):
    """What a `ProblemAtTheta` needs of the `ParametricProblem` that it comes from."""

    def bind(self, leaves: Sequence[Tensor]) -> ProblemAtTheta:
        """Return the problem at the theta with these leaves."""

    def place(self, start: Callable[[Tree], Tree], leaves: Sequence[Tensor]) -> Tensor:
        """Return the value of `start` at these leaves of theta, shape `(*lanes, n)`."""

    def slice(self, leaves: Sequence[Tensor], step: int | None = None) -> Slice:
        """Return the objective at the theta with these leaves; for minibatches, that of one step."""

    def mapped(self, function: Callable[[Tree], Tree], name: str, z: Tensor) -> Tensor:
        """Apply a function of trees like z to a flat z."""

    def at(self, function: Callable[[Tree], Any], name: str, leaves: Sequence[Tensor]) -> Any:
        """Return the value of a function at these leaves of theta, for each lane separately."""


@dataclass(frozen=True)
class ProblemAtTheta:
    """A `ParametricProblem` at one theta, on flat tensors of shape `(*lanes, n)`.

    Strategies use all of it. Solvers use the part that the protocol `blo.solvers.Problem` declares.

    Attributes:
        slice: the objective at this theta; for a fixed-point problem the residual `z - function(z)`.
        term: the constraint set or the penalty.
        layout: the layout of z in flat tensors.
        theta: the upper variable.
        leaves: the leaves of theta, as real tensors.
        parametric: the problem for every theta.
        lifts: the number of `vmap` levels around the problem.
        moving: whether the term depends on theta.
        symmetric: whether the problem has an objective, so that the Jacobian of the gradient is a Hessian.
        recorded: whether gradients keep their graph, so that the solve can be differentiated.
        followed: whether the steps will be differentiated, in this solve or when they are repeated.
        eps: machine epsilon of the arithmetic in which autocast evaluates the objective; None means that of z.
        accuracy: the tolerance of a solver that the user chose; 0 for a default solver or a fixed number of steps.
        carried: the tensors that the solver stored in an earlier call, as constants; None if it stores nothing.
        stepwise: whether each step has its own objective, with another minibatch.
        residuals: the residuals of a least-squares problem, shape `(*lanes, m)`; None for other problems.
    """

    slice: Slice
    term: Term
    layout: Layout
    theta: Tree
    leaves: Sequence[Tensor]
    parametric: Parametric
    lifts: int
    moving: bool
    symmetric: bool = True
    recorded: bool = False
    followed: bool = False
    eps: float | None = None
    accuracy: float = 0.0
    carried: Sequence[Tensor] | None = None
    stepwise: bool = False
    residuals: Slice | None = None

    def value(self, z: Tensor) -> Tensor:
        """Return the objective without the penalty, shape `lanes`.

        Raises:
            StructureError: if the objective returns any other shape, or for a fixed-point problem.
        """
        if not self.symmetric:
            # Evaluating the map of a fixed-point problem as an objective raises the error.
            FixedPointMap(lambda theta, z: z)(self.theta, z)
        value = self.slice(z)
        single = isinstance(value, Tensor) and value.ndim == 0 and z.ndim == 1
        if not single and (not isinstance(value, Tensor) or value.shape != z.shape[:-1]):
            wanted = "a tensor of shape (batch,) because batched=True" if self.layout.lanes else "a scalar tensor"
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise StructureError(f"`objective` must return {wanted}, here {tuple(z.shape[:-1])}, but returned {found}.")
        if value.is_complex():
            raise StructureError(
                f"`objective` must return a real value, but returned {value.dtype}. Did you mean .real?"
            )
        return value

    def gradient(self, z: Tensor, *, graph: bool = False) -> Tensor:
        """Return the gradient of the objective in z, or the residual of a fixed-point problem, shape `(*lanes, n)`.

        It keeps its graph if `graph` is set or the problem is `recorded`.
        """
        if isinstance(self.slice, TiltedSlice):
            # Add the tilt last: summed with the large terms of the gradient, which cancel at a solution, a small tilt
            # would be lost in rounding, and the residual would not show it.
            return replace(self, slice=self.slice.slice).gradient(z, graph=graph) + self.slice.slope
        graph = graph or self.recorded
        if isinstance(self.slice, LinearSlice):
            slope = self.slice.gradient(z)
            return slope if graph or transforms_active() else slope.detach()
        if self.symmetric:
            return value_and_gradient(self.value, z, create_graph=graph)[1]
        # The map itself needs no graph. But inside `torch.func.grad`, `no_grad` would cut the derivative of that level.
        with torch.set_grad_enabled(graph or (transforms_active() and torch.is_grad_enabled())):
            return self.slice(z)

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective without the penalty and its gradient, shapes `lanes` and `(*lanes, n)`."""
        if isinstance(self.slice, TiltedSlice):
            value, slope = replace(self, slice=self.slice.slice).evaluate(z)
            return value + (self.slice.slope * z).sum(-1), slope + self.slice.slope
        value, slope = value_and_gradient(self.value, z, create_graph=self.recorded)
        value = value.to(slope.dtype)  # under autocast the value may have a lower precision than z and the gradient
        return value if self.recorded or transforms_active() else value.detach(), slope

    def hessian(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> H v with the Hessian H of the objective at z; one graph of the gradient serves all products.

        Raises:
            StructureError: for a fixed-point problem, which has no Hessian.
        """
        if not self.symmetric:
            self.value(z)  # raises the error
        # The derivative of recorded products is a third derivative of the objective.
        with third_derivatives.on() if self.recorded else contextlib.nullcontext():
            return hessian_products(partial(self.gradient, graph=True), z, recorded=self.recorded)

    def gauss_newton(
        self, z: Tensor, products: Literal["reverse", "forward"] = "reverse"
    ) -> Callable[[Tensor], Tensor]:
        """Return v -> J' J v with the Jacobian J of the residuals at z; one graph of the residuals serves all products.

        Args:
            z: shape `(*lanes, n)`.
            products: how J v is computed: by a second backward pass, or in forward mode.

        Raises:
            StructureError: if the problem is not a least-squares problem.
        """
        source = self.residuals
        if source is None:
            raise StructureError(
                "this needs a least-squares problem. Use LowerProblem.least_squares(residual), where "
                "residual(theta, z) returns the residuals before they are squared."
            )

        return gauss_newton_products(source, z, products, recorded=self.recorded)

    def penalized(self, z: Tensor) -> Tensor:
        """Return the objective with the penalty, shape `lanes`; whether z satisfies a constraint is not checked."""
        value = self.value(z)
        return value + self.term.value(z) if isinstance(self.term, Penalty) else value

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        """Return the proximal point of the penalty for this step, or the nearest point of the constraint set."""
        return self.term.prox(z, step)

    def residual(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return `unit |z - prox(z - slope / unit)|`, zero exactly at stationary points, shape `lanes`."""
        return residual(self.term, z, slope, unit).detach()

    def scale(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return the unit of the residual at z, by default 1 if that is suitable, shape `(*lanes, 1)`."""
        return scale(self.term, z, slope, unit).detach()

    def natural(self, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
        """Return `unit (z - prox(z - slope / unit))`, shape `(*lanes, n)`; its length is the residual."""
        return natural(self.term, z, slope, unit).detach()

    def tangent(self, term: Term, z: Tensor, slope: Tensor) -> Tangent:
        """Return the tangent space of the term at the solution z with this gradient.

        A constraint counts as active if z is within the term's `slack` of it. If the solver accepts larger residuals,
        z may lie further from an active constraint: the slack is then increased to twice the residual, or to twice the
        residual over the curvature if the curvature is above 1.

        Args:
            term: the term of this problem, or the same term as a constant.
            z: shape `(*lanes, n)`.
            slope: the gradient at z.
        """
        if term.loosened(self.accuracy) is not term:
            left = residual(term, z, slope).detach()
            # A lane that has missed its tolerance is reported, and must not decide for the others.
            left = torch.where(left <= self.accuracy, left, 0.0)
            if term.loosened(2 * float(plain(left).max())) is not term:
                # The error of z is about the residual over the curvature. Where the curvature is large, a slack of
                # twice the residual would take constraints for active at interior solutions.
                at = Place(z.detach(), slope.detach(), z.detach(), slope.detach())
                curved = curvature_along_residual(replace(self.detach(), term=term), at, None)[0].squeeze(-1)
                error = torch.where(left > 0, left / curved.clamp(min=1.0), 0.0)
                term = term.loosened(2 * float(plain(error).max()))
        return term.tangent(z, slope)

    def motion(self, origin: Term, tangent: Tangent, z: Tensor) -> Tensor:
        """Return the displacement of z with the face of the set when theta changes the term from `origin` to its own.

        `tangent` is the tangent space at z of `origin`. The displacement is zero if the term does not depend on theta.
        """
        return tangent.carry(origin, self.term, z) if self.moving else torch.zeros_like(z)

    def detach(self) -> ProblemAtTheta:
        """Return the same problem with a constant theta; what was computed for this theta is shared."""
        return self._constant

    @cached_property
    def _constant(self) -> ProblemAtTheta:
        return replace(
            self,
            slice=self.slice.detach(),
            theta=tree.detach(self.theta),
            leaves=[leaf.detach() for leaf in self.leaves],
            recorded=False,
            residuals=None if self.residuals is None else self.residuals.detach(),
        )

    def record(self) -> ProblemAtTheta:
        """Return the same problem with gradients that keep their graph."""
        return replace(self, recorded=True, followed=True)

    def follow(self) -> ProblemAtTheta:
        """Return the same problem for steps that will be differentiated, now or when they are repeated."""
        return self if self.followed else replace(self, followed=True)

    def tilt(self, slope: Tensor) -> ProblemAtTheta:
        """Return the problem with `<slope, z>` added to its objective, for a constant slope of z's shape."""
        return replace(self, slice=TiltedSlice(self.slice, slope))

    def rebind(self, leaves: Sequence[Tensor]) -> ProblemAtTheta:
        """Return the problem at the theta with these leaves."""
        return self.parametric.bind(leaves)

    def place(self, start: Callable[[Tree], Tree] | None, z0: Tensor) -> Tensor:
        """Return the start of the solver, shape `(*lanes, n)`: the value of `start` at this theta, or z0 without it.

        Raises:
            StructureError: if `start` does not return a tree like z0.
        """
        return z0 if start is None else self.parametric.place(start, self.leaves)

    def at_step(self, step: int | Tensor | tuple[()]) -> ProblemAtTheta:
        """Return the problem with the objective of one step; the same problem if all steps share one objective."""
        if not self.stepwise or isinstance(step, tuple):
            return self
        # Under `vmap` lanes that have stopped no longer count, so the largest number is that of the running ones.
        number = int(plain(step).max()) if isinstance(step, Tensor) else step
        return replace(self, slice=self.parametric.slice(self.leaves, number))

    def mapped(self, function: Callable[[Tree], Tree], name: str, z: Tensor) -> Tensor:
        """Apply a function from trees like z to trees like z to a tensor of shape `(*lanes, n)`.

        Raises:
            StructureError: if the result is not a tree like z; the message calls it `name`.
        """
        return self.parametric.mapped(function, name, z)

    def at_theta(self, function: Callable[[Tree], Any], name: str, read: Callable[[Any], Any]) -> Any:
        """Return `read(function(theta))`, which is evaluated once, and for each lane separately under `vmap`.

        Raises:
            StructureError: under `vmap`, if `read` does not return a tensor.
        """
        key = name, id(function)
        if key not in self._at_theta:
            self._at_theta[key] = self.parametric.at(lambda theta: read(function(theta)), name, self.leaves)
        return self._at_theta[key]

    @cached_property
    def _at_theta(self) -> dict[tuple[str, int], Any]:
        return {}
