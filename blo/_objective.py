"""Objectives at one theta: where work that depends on theta alone is done once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import gradient
from blo._formulas import Formulas, forward_mode
from blo._layout import Layout
from blo._types import Objective, Tree
from blo.errors import StructureError


class Slice(Protocol):
    """An objective at one theta: a function of z alone."""

    def __call__(self, z: Tree) -> Tensor:
        """Return the value, shape `()` or `(batch,)`."""

    def detach(self) -> Slice:
        """Return the same function with theta held constant."""


@dataclass(frozen=True)
class PlainSlice:
    """Any callable objective at one theta."""

    objective: Objective
    theta: Tree

    def __call__(self, z: Tree) -> Tensor:
        if forward_mode():
            with Formulas():
                return self.objective(self.theta, z)
        return self.objective(self.theta, z)

    def detach(self) -> PlainSlice:
        return PlainSlice(self.objective, tree.detach(self.theta))


@dataclass(frozen=True)
class LinearSlice:
    """`<slope, z - anchor> + curvature/2 |z - anchor|^2`; the slope may carry the graph of its theta.

    The slope is the gradient of `source` at the anchor.
    """

    slope: Tensor
    anchor: Tensor
    curvature: float
    layout: Layout
    source: PlainSlice

    def __call__(self, z: Tree) -> Tensor:
        step = self.layout.ravel(z) - self.anchor
        return (step * (self.slope + 0.5 * self.curvature * step)).sum(-1)

    def detach(self) -> LinearSlice:
        return replace(self, slope=self.slope.detach(), source=self.source.detach())


@dataclass(frozen=True)
class TiltedSlice:
    """`slice(z) + <slope, z>` for a constant slope of shape `(*lanes, n)`."""

    slice: Slice
    slope: Tensor
    ravel: Callable[[Tree], Tensor]

    def __call__(self, z: Tree) -> Tensor:
        return self.slice(z) + (self.slope * self.ravel(z)).sum(-1)

    def detach(self) -> TiltedSlice:
        return TiltedSlice(self.slice.detach(), self.slope, self.ravel)


@dataclass(frozen=True)
class Linearized:
    """A first-order model of an objective at an anchor, with a proximal term.

    Its value is `<grad_z objective(theta, anchor), z - anchor> + curvature/2 |z - anchor|^2`. The gradient at the
    anchor depends on theta alone, so it is computed once for each theta, however often the model is evaluated.
    """

    objective: Objective
    anchor: Tree
    curvature: float
    batched: bool

    def __call__(self, theta: Tree, z: Tree) -> Tensor:
        return self.at(theta)(z)

    def at(self, theta: Tree) -> LinearSlice:
        """Return the model at one theta, its slope differentiable in every leaf of theta that requires grad."""
        layout = Layout.of(self.anchor, batched=self.batched, name="anchor")
        anchor = layout.ravel(self.anchor).detach()
        live = any(leaf.requires_grad for leaf in tree.flatten(theta, "theta")[0])

        source = PlainSlice(self.objective, theta)

        def value(z: Tensor) -> Tensor:
            return source(layout.unravel(z))

        slope = gradient(value, anchor, create_graph=live and torch.is_grad_enabled())
        return LinearSlice(slope, anchor, self.curvature, layout, source)


@dataclass(frozen=True)
class FixedPoint:
    """Stands in the place of an objective where a fixed point `z = function(theta, z)` is sought.

    Its residual `z - function(theta, z)` takes the place of the gradient. No function need have it as its gradient.
    """

    function: Callable[[Tree, Tree], Tree]

    def __call__(self, theta: Tree, z: Tree) -> Tensor:
        raise StructureError(
            "a fixed-point problem has no objective to evaluate, so solvers and strategies that need values cannot "
            "be used with it. Use solver=FixedPoint() and gradient=Implicit() or Unrolled()."
        )


@dataclass(frozen=True)
class LeastSquares:
    """`1/2 |residual(theta, z)|^2`, one for each problem of a batch.

    Residuals in half precision, as autocast makes them, are squared in single precision: in float16 the square of 256
    overflows.

    Solvers and strategies that know the residuals may use their Jacobian.
    """

    residual: Callable[[Tree, Tree], Tensor]
    batched: bool

    def __call__(self, theta: Tree, z: Tree) -> Tensor:
        return 0.5 * self.vector(theta, z).square().sum(-1)

    def vector(self, theta: Tree, z: Tree) -> Tensor:
        """Return the residuals in single precision or better, shape `(m,)` or `(batch, m)`.

        Raises:
            StructureError: for anything but a real tensor, whose first axis numbers the problems of a batch.
        """
        found = self.residual(theta, z)
        lanes = tuple(tree.leaves(z)[0].shape[:1]) if self.batched else ()
        if not isinstance(found, Tensor) or found.is_complex() or tuple(found.shape[: len(lanes)]) != lanes:
            is_tensor = isinstance(found, Tensor)
            given = f"{found.dtype} of shape {tuple(found.shape)}" if is_tensor else type(found).__name__
            wanted = f"of shape {(*lanes, '...')}, the residuals of each problem" if lanes else "of any shape"
            raise StructureError(
                f"`residual` must return a real tensor {wanted}, but returned {given}. Join several by torch.cat; of "
                "complex ones take torch.view_as_real."
            )
        return found.reshape(*lanes, -1).to(torch.promote_types(found.dtype, torch.float32))


@dataclass(frozen=True)
class WithoutAux:
    """The first of the two values of a function that returns `(loss, aux)`."""

    function: Callable[..., Any]
    name: str = "objective"

    def __call__(self, *arguments: Any) -> Any:
        return split(self.function(*arguments), self.name)[0]


def split(found: Any, name: str) -> tuple[Any, Any]:
    """Return the loss and what comes with it.

    Raises:
        StructureError: if there are not just these two.
    """
    if not isinstance(found, tuple) or len(found) != 2:
        given = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
        raise StructureError(f"with has_aux=True, `{name}` must return the pair (loss, aux), but returned {given}.")
    return found


@dataclass(frozen=True)
class Indexed:
    """`objective(theta, z, batch)` as a function of theta, z and the number of a step."""

    objective: Callable[[Tree, Tree, Any], Tensor]
    batches: Callable[[int], Any] | Sequence[Any]

    def __call__(self, theta: Tree, z: Tree, step: int) -> Tensor:
        return self.objective(theta, z, self.batch(step))

    def batch(self, step: int) -> Any:
        """Return the batch of a step; a sequence begins again after its end."""
        return self.batches(step) if callable(self.batches) else self.batches[step % len(self.batches)]


@dataclass(frozen=True)
class Batched:
    """Stands in the place of an objective where each step of the solver has one of its own.

    Whoever evaluates it without the number of a step wants one objective, and is refused.
    """

    function: Callable[[Tree, Tree, int], Tensor]
    step: int | None = None

    def __call__(self, theta: Tree, z: Tree) -> Tensor:
        if self.step is None:
            raise StructureError(
                "a problem with `batches` has another objective in each step, and none that could be solved or "
                "evaluated as a whole. Use ProjectedGradient(step, max_steps, tol=None), TorchOpt or TorchOptim, and "
                "Unrolled() or Zero(); for other solvers and strategies leave out `batches`."
            )
        return self.function(theta, z, self.step)


def around(objective: Objective, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Objective:
    """Return the objective with its function wrapped."""
    if isinstance(objective, FixedPoint):
        return FixedPoint(wrap(objective.function))
    if isinstance(objective, Batched):
        return replace(objective, function=wrap(objective.function))
    if isinstance(objective, Linearized):
        return replace(objective, objective=wrap(objective.objective))
    if isinstance(objective, LeastSquares):
        return replace(objective, residual=wrap(objective.residual))
    return wrap(objective)


def written(objective: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that the user wrote for an objective."""
    while isinstance(objective, Linearized):
        objective = objective.objective
    if isinstance(objective, Batched) and isinstance(objective.function, Indexed):
        return partial(written(objective.function.objective), objective.function.batches)
    if isinstance(objective, FixedPoint | Batched | WithoutAux):
        return objective.function
    return objective.residual if isinstance(objective, LeastSquares) else objective


def slice_at(objective: Objective, theta: Tree) -> Slice:
    """Return the objective at one theta, sharing whatever depends on theta alone."""
    return objective.at(theta) if isinstance(objective, Linearized) else PlainSlice(objective, theta)


__all__ = [
    "Batched",
    "FixedPoint",
    "Indexed",
    "LeastSquares",
    "Linearized",
    "Slice",
    "TiltedSlice",
    "WithoutAux",
    "around",
    "slice_at",
    "split",
    "written",
]
