"""The kinds of objectives, and objectives at one theta. Only `Linearized` computes something once per theta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import settled, value_and_gradient
from blo._formulas import LOSSES, Formulas
from blo._layout import Layout
from blo._torch import forward_mode
from blo._types import Objective, Tree
from blo.errors import StructureError


class Slice(Protocol):
    """An objective at one theta: a function of a flat z alone."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return the value at z of shape `(*lanes, n)`, shape `lanes`."""

    def detach(self) -> Slice:
        """Return the same function with theta held constant."""


@dataclass(frozen=True)
class PlainSlice:
    """A function of theta and a flat z as the objective at one theta."""

    function: Callable[[Tree, Tensor], Tensor]
    theta: Tree

    def __call__(self, z: Tensor) -> Tensor:
        if forward_mode():
            # Torch's own derivatives of these losses have no forward mode.
            with Formulas(LOSSES):
                return self.function(self.theta, settled(z))
        return self.function(self.theta, z)

    def detach(self) -> PlainSlice:
        return PlainSlice(self.function, tree.detach(self.theta))


@dataclass(frozen=True)
class LinearSlice:
    """`<slope, z - anchor> + curvature/2 |z - anchor|^2`, where the slope may have a graph to theta.

    The slope is the gradient of `source` at the anchor.
    """

    slope: Tensor
    anchor: Tensor
    curvature: float
    source: PlainSlice

    def __call__(self, z: Tensor) -> Tensor:
        step = z - self.anchor
        return (step * (self.slope + 0.5 * self.curvature * step)).sum(-1)

    def gradient(self, z: Tensor) -> Tensor:
        """Return the gradient in z, shape `(*lanes, n)`, with a graph to z and to theta."""
        return self.slope + self.curvature * (z - self.anchor)

    def detach(self) -> LinearSlice:
        return replace(self, slope=self.slope.detach(), source=self.source.detach())


@dataclass(frozen=True)
class TiltedSlice:
    """`slice(z) + <slope, z>` for a constant slope of shape `(*lanes, n)`."""

    slice: Slice
    slope: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return self.slice(z) + (self.slope * z).sum(-1)

    def detach(self) -> TiltedSlice:
        return TiltedSlice(self.slice.detach(), self.slope)


@dataclass(frozen=True)
class Linearized:
    """A first-order model of an objective at an anchor, with a proximal term.

    Its value is `<grad_z objective(theta, anchor), z - anchor> + curvature/2 |z - anchor|^2`. The gradient at the
    anchor depends on theta alone, so it is computed once for each theta, for any number of evaluations of the model.
    """

    function: Objective
    anchor: Tree
    curvature: float
    batched: bool

    def __call__(self, theta: Tree, z: Tree) -> Tensor:
        layout = Layout.of(z, batched=self.batched)
        return self.at(theta, layout)(layout.ravel(z))

    def at(self, theta: Tree, layout: Layout) -> LinearSlice:
        """Return the model at one theta; its slope is differentiable in the leaves of theta that require grad.

        Raises:
            StructureError: if the anchor does not have the layout of z.
        """
        anchor = layout.ravel(self.anchor, "anchor").detach()
        # If no leaf requires grad the slope is a constant, and a graph of it would only take memory.
        live = any(leaf.requires_grad for leaf in tree.flatten(theta, "theta")[0])
        source = PlainSlice(lambda theta, z: self.function(theta, layout.unravel(z)), theta)
        slope = value_and_gradient(source, anchor, create_graph=live and torch.is_grad_enabled())[1]
        return LinearSlice(slope, anchor, self.curvature, source)


@dataclass(frozen=True)
class FixedPointMap:
    """The map of a fixed-point problem `z = function(theta, z)`, which has no objective.

    The residual `z - function(theta, z)` replaces the gradient. In general it is not the gradient of any function.
    """

    function: Callable[[Tree, Tree], Tree]

    def __call__(self, theta: Tree, z: Tree) -> Tensor:
        raise StructureError(
            "a fixed-point problem has no objective, so solvers and strategies that need values cannot be used with "
            "it. Use solver=FixedPoint() and gradient=Implicit() or Unrolled()."
        )


@dataclass(frozen=True)
class LeastSquares:
    """`1/2 |residual(theta, z)|^2`, one value for each problem of a batch.

    Residuals in half precision, as autocast makes them, are squared in single precision: in float16 the square of 256
    overflows. Solvers and strategies may use the Jacobian of the residuals.
    """

    function: Callable[[Tree, Tree], Tensor]
    batched: bool

    def __call__(self, theta: Tree, z: Tree) -> Tensor:
        return 0.5 * self.vector(theta, z).square().sum(-1)

    def vector(self, theta: Tree, z: Tree) -> Tensor:
        """Return the residuals in single precision or better, shape `(m,)` or `(batch, m)`.

        Raises:
            StructureError: if the result is not a real tensor, or its first axis does not number the problems of a
                batch.
        """
        found = self.function(theta, z)
        lanes = tuple(tree.leaves(z)[0].shape[:1]) if self.batched else ()
        if not isinstance(found, Tensor) or found.is_complex() or tuple(found.shape[: len(lanes)]) != lanes:
            is_tensor = isinstance(found, Tensor)
            given = f"{found.dtype} of shape {tuple(found.shape)}" if is_tensor else type(found).__name__
            wanted = f"of shape {(*lanes, '...')}, the residuals of each problem" if lanes else "of any shape"
            raise StructureError(
                f"`residual` must return a real tensor {wanted}, but returned {given}. Join several tensors with "
                "torch.cat, and convert complex ones with torch.view_as_real."
            )
        return found.reshape(*lanes, -1).to(torch.promote_types(found.dtype, torch.float32))


@dataclass(frozen=True)
class WithoutAux:
    """The loss of a function that returns `(loss, aux)`."""

    function: Callable[..., Any]
    name: str = "objective"

    def __call__(self, *arguments: Any) -> Any:
        return split(self.function(*arguments), self.name)[0]


def split(found: Any, name: str) -> tuple[Any, Any]:
    """Return the pair `(loss, aux)` that a function has returned.

    Raises:
        StructureError: if it is not such a pair.
    """
    if not isinstance(found, tuple) or len(found) != 2:
        given = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
        raise StructureError(f"with has_aux=True, `{name}` must return the pair (loss, aux), but returned {given}.")
    return found


@dataclass(frozen=True)
class Indexed:
    """`objective(theta, z, batch)` as a function of theta, z and the number of the step."""

    function: Callable[[Tree, Tree, Any], Tensor]
    batches: Callable[[int], Any] | Sequence[Any]

    def __call__(self, theta: Tree, z: Tree, step: int) -> Tensor:
        return self.function(theta, z, self.batch(step))

    def batch(self, step: int) -> Any:
        """Return the batch of a step; a sequence is repeated."""
        return self.batches(step) if callable(self.batches) else self.batches[step % len(self.batches)]


@dataclass(frozen=True)
class Minibatched:
    """An objective with another minibatch in each step of the solver.

    It can be evaluated only with the number of a step: code that needs a single objective gets an error.
    """

    function: Callable[[Tree, Tree, int], Tensor]
    step: int | None = None

    def __call__(self, theta: Tree, z: Tree) -> Tensor:
        if self.step is None:
            raise StructureError(
                "a problem with `batches` has a different objective in each step, so there is no single objective to "
                "solve or to evaluate. Use ProjectedGradient(step, max_steps, tol=None), TorchOpt or TorchOptim, and "
                "Unrolled() or Zero(); for other solvers and strategies leave out `batches`."
            )
        return self.function(theta, z, self.step)


#: The kinds of objectives that `around` keeps, each with the user's function as its `function`.
_KINDS = FixedPointMap | LeastSquares | Linearized | Minibatched


def around(objective: Objective, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Objective:
    """Return the objective with the user's function wrapped; its kind stays the same."""
    if isinstance(objective, _KINDS):
        changes: dict[str, Any] = {"function": wrap(objective.function)}
        return replace(objective, **changes)
    return wrap(objective)


def as_given(objective: Callable[..., Any]) -> Callable[..., Any]:
    """Return an objective without the wrappers that `batches` and `has_aux` of `LowerProblem` put around it."""
    if isinstance(objective, Minibatched) and isinstance(objective.function, Indexed):
        objective = objective.function.function
    return objective.function if isinstance(objective, WithoutAux) else objective


def with_lanes(objective: Objective, batched: bool) -> Objective:
    """Return the objective of one problem, or of a batch of them."""
    if isinstance(objective, Linearized):
        return replace(objective, function=with_lanes(objective.function, batched), batched=batched)
    return replace(objective, batched=batched) if isinstance(objective, LeastSquares) else objective


def user_function(objective: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that the user wrote, without the library's wrappers."""
    if isinstance(objective, Indexed):
        return partial(user_function(objective.function), objective.batches)
    return user_function(objective.function) if isinstance(objective, _KINDS | WithoutAux) else objective


__all__ = [
    "FixedPointMap",
    "Indexed",
    "LeastSquares",
    "Linearized",
    "Minibatched",
    "Slice",
    "TiltedSlice",
    "WithoutAux",
    "around",
    "as_given",
    "split",
    "user_function",
    "with_lanes",
]
