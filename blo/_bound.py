"""A lower problem at one theta, on flat tensors: what solvers and strategies see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import (
    differentiated_twice,
    gradient,
    jvp,
    length,
    plain,
    transforms_active,
    value_and_gradient,
)
from blo._curvature import Place, bend
from blo._layout import Layout
from blo._objective import FixedPoint, LinearSlice, Slice, TiltedSlice
from blo._term import Tangent, Term
from blo._types import Tree
from blo.errors import StructureError
from blo.penalties import Penalty
from blo.sets import Free

#: Extent of a set below which a residual in the unit of z says nothing: a solver may accept as much.
_SMALL = 1e-3
#: Power of the unit of rounding that a step has at least, beside z, in which optimality is looked at.
_REACH = 0.25
#: The longest step, in units of z, and the least z that is a unit.
_LONG, _TINY = 1e6, 1e-7


class Origin(Protocol):
    """A lower problem at any theta."""

    def bind(self, leaves: Sequence[Tensor]) -> Bound:
        """Return the problem at the theta with these leaves."""

    def place(self, start: Callable[[Tree], Tree], leaves: Sequence[Tensor]) -> Tensor:
        """Return what `start` gives at these leaves of theta, shape `(*lanes, n)`."""

    def slice(self, leaves: Sequence[Tensor], step: int | None = None) -> Slice:
        """Return the objective at the theta with these leaves, that of one step where each has one of its own."""

    def mapped(self, function: Callable[[Tree], Tree], name: str, z: Tensor) -> Tensor:
        """Return what a function of trees like z makes of a flat one."""

    def at(self, function: Callable[[Tree], Any], name: str, leaves: Sequence[Tensor]) -> Any:
        """Return what a function gives at these leaves of theta, lane by lane."""


@dataclass(frozen=True)
class Bound:
    """A lower problem at one theta, on flat tensors of shape `(*lanes, n)`: all that a lower solver sees.

    Attributes:
        slice: the objective at this theta; where a fixed point is sought, it returns the residual `z - function(z)`.
        term: the constraint set or the penalty.
        theta: the upper variable.
        leaves: its leaves, as real tensors.
        origin: the problem at any theta.
        moving: the term depends on theta.
        symmetric: the slice has values, and its gradient's Jacobian is a Hessian.
        recorded: keep the graph through every gradient, for differentiation through the solver.
        followed: the solver will be differentiated through, in this solve or in one that repeats its steps.
        eps: the unit of rounding of the arithmetic in which autocast evaluates the objective; None: that of z.
        accuracy: the residual that a named solver accepts; 0 for default solvers and a fixed number of steps.
        carried: what the solver left in an earlier call, constants; None where it carries nothing.
        stepwise: each step has an objective of its own, with another minibatch.
        residuals: what the objective is half the sum of squares of, shape `(*lanes, m)`; None where it is none.
    """

    slice: Slice
    term: Term
    layout: Layout
    theta: Tree
    leaves: Sequence[Tensor]
    origin: Origin
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
            StructureError: if the objective returns any other shape, or a fixed point is sought.
        """
        if not self.symmetric:
            FixedPoint(lambda theta, z: z)(self.theta, z)
        return self._checked(self.slice(self._unravel(z)), z)

    def sides(self, z: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return two values, shape `lanes`, whose gradients in theta differ by that of `<gradient(z), 2 shift>`.

        This holds up to the third derivative times `shift` cubed. A linearised objective takes its gradient at its
        anchor, so it is looked at on both sides of that, which spares a second backward pass.
        """
        source, at = (self.slice.source, self.slice.anchor) if isinstance(self.slice, LinearSlice) else (self.slice, z)
        ahead, behind = (source(self._unravel(side)) for side in (at + shift, at - shift))
        return self._checked(ahead, z), self._checked(behind, z)

    def sided_slope(self, slope: Tensor) -> Tensor:
        """Return the gradient between the two values of `sides`, given that of the objective at z."""
        return self.slice.slope.detach() if isinstance(self.slice, LinearSlice) else slope

    def _checked(self, value: Tensor, z: Tensor) -> Tensor:
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
        """Return the gradient of the objective in z, or the residual of a fixed point, shape `(*lanes, n)`.

        Its graph is kept where `graph` asks for it, and where the problem is `recorded`.
        """
        if isinstance(self.slice, TiltedSlice):
            # Added last: among the terms of the gradient a small tilt would be lost, unseen by the residual.
            return replace(self, slice=self.slice.slice).gradient(z, graph=graph) + self.slice.slope
        graph = graph or self.recorded
        if self.symmetric:
            return gradient(self.value, z, create_graph=graph)
        with torch.set_grad_enabled(graph or (transforms_active() and torch.is_grad_enabled())):
            found = self.slice(self._unravel(z))
            return found if self.lifts else self.layout.ravel(found, "the residual of the fixed point")

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective without the penalty and its gradient, shapes `lanes` and `(*lanes, n)`."""
        if isinstance(self.slice, TiltedSlice):
            value, slope = replace(self, slice=self.slice.slice).evaluate(z)
            return value + (self.slice.slope * z).sum(-1), slope + self.slice.slope
        value, slope = value_and_gradient(self.value, z, create_graph=self.recorded)
        value = value.to(slope.dtype)  # gradients have the dtype of z, whatever the objective computes in
        return value if self.recorded or transforms_active() else value.detach(), slope

    def hessian(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> H v with the Hessian H of the objective at z; one graph of the gradient serves all products.

        Raises:
            StructureError: if a fixed point is sought, which has no Hessian.
        """
        if not self.symmetric:
            self.value(z)  # refuses
        if transforms_active():
            pullback = torch.func.vjp(self.gradient, z)[1]
            return lambda v: pullback(v)[0]
        with torch.enable_grad():
            point = z if z.requires_grad else z.detach().requires_grad_()
            slope = self.gradient(point, graph=True)

        def product(v: Tensor) -> Tensor:
            options = {"retain_graph": True, "create_graph": self.recorded, "materialize_grads": True}
            found = torch.autograd.grad(slope, point, v, **options)[0]
            return found if self.recorded else found.detach()  # zeros that torch 2.7 fills in require grad

        return product

    def gauss_newton(
        self, z: Tensor, products: Literal["reverse", "forward"] = "reverse"
    ) -> Callable[[Tensor], Tensor]:
        """Return v -> J' J v with the Jacobian J of the residuals at z; one graph of them serves all products.

        Args:
            z: shape `(*lanes, n)`.
            products: how J v is computed: by a second backward pass, or in forward mode.

        Raises:
            StructureError: if the objective is no sum of squares.
        """
        source = self.residuals
        if source is None:
            raise StructureError(
                "the objective is not known to be a sum of squares. Use LowerProblem.least_squares(residual), where "
                "residual(theta, z) returns what is squared."
            )

        def residuals(at: Tensor) -> Tensor:
            return source(self._unravel(at))

        if transforms_active():
            pull = torch.func.vjp(residuals, z)[1]
            return lambda v: pull(jvp(residuals, z, v))[0]
        options = {"retain_graph": True, "create_graph": self.recorded, "materialize_grads": True}
        with torch.enable_grad():
            point = z if z.requires_grad else z.detach().requires_grad_()
            found = residuals(point)
            if not found.requires_grad:
                return torch.zeros_like
            if products == "reverse":
                probe = torch.zeros_like(found, requires_grad=True)
                # The pullback is linear in its argument, so that its own pullback is the product with J.
                pulled = torch.autograd.grad(found, point, probe, **{**options, "create_graph": True})[0]

        def product(v: Tensor) -> Tensor:
            with torch.set_grad_enabled(self.recorded):
                if products == "forward":
                    along = jvp(residuals, z, v)
                else:
                    with differentiated_twice():
                        along = torch.autograd.grad(pulled, probe, v, **options)[0]
                image: Tensor = torch.autograd.grad(found, point, along, **options)[0]
            return image if self.recorded else image.detach()

        return product

    def penalized(self, z: Tensor) -> Tensor:
        """Return the objective with the penalty, shape `lanes`; constraints are the caller's business."""
        value = self.value(z)
        return value + self.term.value(z) if isinstance(self.term, Penalty) else value

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        """Return the proximal point of the penalty for this step, or the nearest point of the constraint set."""
        return self.term.prox(z, step)

    def residual(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return `unit |z - prox(z - slope / unit)|`, zero exactly at stationary points, shape `lanes`."""
        return residual(self.term, z, slope, unit).detach()

    def scale(self, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
        """Return the unit in which the residual is measured there, 1 where that will do, shape `(*lanes, 1)`."""
        return scale(self.term, z, slope, unit).detach()

    def natural(self, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
        """Return `unit (z - prox(z - slope / unit))`, whose length is the residual, shape `(*lanes, n)`."""
        return natural(self.term, z, slope, unit).detach()

    def tangent(self, term: Term, z: Tensor, slope: Tensor) -> Tangent:
        """Return the tangent space of the term, or of the same at rest, at the solution z with this gradient.

        A solver that accepts residuals larger than the term's `slack` leaves z further than that from constraints that
        hold it: then they are looked for as far as the residual reaches, less far where the curvature is large.
        """
        if term.loosened(self.accuracy) is not term:
            left = residual(term, z, slope).detach()
            reach = 2 * float(plain(left).max())
            if reach <= 2 * self.accuracy and term.loosened(reach) is not term:
                at = Place(z.detach(), slope.detach(), z.detach(), slope.detach())
                curved = bend(replace(self.detach(), term=term), at, None)[0].squeeze(-1)
                term = term.loosened(2 * float(plain(left / curved.clamp(min=1.0)).max()))
        return term.tangent(z, slope)

    def motion(self, origin: Term, tangent: Tangent, z: Tensor) -> Tensor:
        """Return how far the term's face carries z when theta moves the term away from `origin`, with this tangent."""
        return tangent.carry(origin, self.term, z) if self.moving else torch.zeros_like(z)

    def detach(self) -> Bound:
        """Return the same problem with theta held constant, sharing what was computed for this theta."""
        return self._constant

    @cached_property
    def _constant(self) -> Bound:
        return replace(
            self,
            slice=self.slice.detach(),
            theta=tree.detach(self.theta),
            leaves=[leaf.detach() for leaf in self.leaves],
            recorded=False,
            residuals=None if self.residuals is None else self.residuals.detach(),
        )

    def record(self) -> Bound:
        """Return the same problem, keeping the graph through every gradient."""
        return replace(self, recorded=True, followed=True)

    def follow(self) -> Bound:
        """Return the same problem, for steps that will be differentiated, now or when they are made again."""
        return self if self.followed else replace(self, followed=True)

    def tilt(self, slope: Tensor) -> Bound:
        """Return the problem with `<slope, z>` added to its objective, for a constant slope of z's shape."""

        def ravel(z: Tree) -> Tensor:
            flat: Tensor = z if self.lifts else self.layout.ravel(z)
            return flat

        return replace(self, slice=TiltedSlice(self.slice, slope, ravel))

    def rebind(self, leaves: Sequence[Tensor]) -> Bound:
        """Return the problem at the theta with these leaves."""
        return self.origin.bind(leaves)

    def place(self, start: Callable[[Tree], Tree] | None, z0: Tensor) -> Tensor:
        """Return where a solver starts, shape `(*lanes, n)`: what `start` gives at this theta, or z0.

        Raises:
            StructureError: if `start` does not return a tree like z0.
        """
        return z0 if start is None else self.origin.place(start, self.leaves)

    def at_step(self, step: int | Tensor | tuple[()]) -> Bound:
        """Return the problem whose objective is that of one step; the same one if all steps share the objective."""
        if not self.stepwise or isinstance(step, tuple):
            return self
        # Under `vmap`, problems that rest have stopped counting.
        number = int(plain(step).max()) if isinstance(step, Tensor) else step
        return replace(self, slice=self.origin.slice(self.leaves, number))

    def mapped(self, function: Callable[[Tree], Tree], name: str, z: Tensor) -> Tensor:
        """Return what a function from trees like z to trees like z makes of a tensor of shape `(*lanes, n)`.

        Raises:
            StructureError: if it returns anything else, calling that `name`.
        """
        return self.origin.mapped(function, name, z)

    def at_theta(self, function: Callable[[Tree], Any], name: str, read: Callable[[Any], Any]) -> Any:
        """Return `read(function(theta))`, evaluated once; lane by lane where `vmap` maps over the problem.

        Raises:
            StructureError: inside `vmap`, if `read` does not return a tensor.
        """
        key = name, id(function)
        if key not in self._at_theta:
            self._at_theta[key] = self.origin.at(lambda theta: read(function(theta)), name, self.leaves)
        return self._at_theta[key]

    @cached_property
    def _at_theta(self) -> dict[tuple[str, int], Any]:
        return {}

    def _unravel(self, z: Tensor) -> Tree:
        return z if self.lifts else self.layout.unravel(z)


def scale(term: Term, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
    """Return the unit, 1 if None, or the nearest one in which the natural map tells something, `(*lanes, 1)`."""
    if isinstance(term, Free):
        return torch.ones_like(slope[..., :1])
    size, far = length(slope), length(z)
    unit = torch.ones_like(size) if unit is None else unit
    if term.rounds:
        # A step that is short beside z would be lost, or most of it, in the rounding of z.
        least = torch.finfo(z.dtype).eps ** _REACH * far
        most = torch.where((size > 0) & (least > 0), size / torch.where(least > 0, least, 1.0), torch.inf)
        unit = torch.minimum(unit, most)
    # A very long one ends on the other side of the set, wherever it starts.
    unit = torch.maximum(unit, size / (_LONG * far.clamp(min=_TINY)))
    if term.extent is None:
        return unit
    # Of a small set every point is near every other: a step that leads out of it shows no distance to a solution.
    extent = torch.as_tensor(term.extent, device=slope.device)
    small = (extent > 0) & (extent < _SMALL)
    return torch.maximum(unit, torch.where(small, size / torch.where(small, extent, 1.0), 0.0).to(slope.dtype))


def natural(term: Term, z: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
    """Return `unit (z - prox(z - slope / unit))`, the natural map of first-order optimality, shape `(*lanes, n)`."""
    if isinstance(term, Free):
        return slope  # of which a unit would take the last bit
    return unit * term.retreat(z, slope / unit, 1 / unit)


def residual(term: Term, z: Tensor, slope: Tensor, unit: Tensor | None = None) -> Tensor:
    """Return the length of the natural map, shape `lanes`: zero exactly at stationary points."""
    return length(natural(term, z, slope, scale(term, z, slope, unit))).squeeze(-1)
