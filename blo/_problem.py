"""The lower problem, and its restriction to one theta on flat tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import gradient
from blo._layout import Layout
from blo._objective import Linearized, PlainSlice, Slice, slice_at
from blo._types import Objective, Tree
from blo.errors import StructureError
from blo.sets import Free, Set


@dataclass(frozen=True)
class LowerProblem:
    """`minimise objective(theta, z) over z in constraint`.

    Args:
        objective: returns a scalar, or a tensor of shape `(batch,)` when `batched`.
        constraint: a set, or a callable `theta -> set` when the set moves with theta.
        batched: the first axis of every leaf of z numbers independent problems, solved, projected and
            differentiated together.
    """

    objective: Objective
    constraint: Set | Callable[[Tree], Set] = field(default_factory=Free)
    batched: bool = field(default=False, kw_only=True)

    def linearize(self, anchor: Tree, curvature: float) -> LowerProblem:
        """Return the problem with its objective replaced by a first-order model and a proximal term.

        The model is `<grad_z objective(theta, anchor), z - anchor> + curvature/2 |z - anchor|^2`: one projected
        gradient step of size `1/curvature` from the anchor solves it exactly, and its Hessian in z is `curvature`
        times the identity (Zhang et al., ICML 2022, Sec. 4).

        Args:
            anchor: a tree like z; a constant.
            curvature: the proximal weight, in units of objective over z squared; positive.

        Raises:
            ValueError: if the curvature is not positive.
        """
        if not curvature > 0:
            raise ValueError(f"`curvature` must be positive for the model to have a minimiser, but is {curvature}.")
        model = Linearized(self.objective, tree.detach(anchor), float(curvature), self.batched)
        return replace(self, objective=model)


@dataclass(frozen=True)
class Bound:
    """A lower problem at one theta, on flat tensors of shape `(*lanes, n)`: all that a lower solver sees.

    Attributes:
        theta: the upper variable.
        moving: the constraint set depends on theta.
        recorded: keep the graph through every gradient, for differentiation through the solver.
    """

    slice: Slice
    constraint: Set
    layout: Layout
    theta: Tree
    lifts: int
    moving: bool
    recorded: bool = False

    def value(self, z: Tensor) -> Tensor:
        """Return the objective, shape `lanes`.

        Raises:
            StructureError: if the objective returns any other shape.
        """
        value = self.slice(z if self.lifts else self.layout.unravel(z))
        if not isinstance(value, Tensor) or value.shape != z.shape[:-1]:
            wanted = "a tensor of shape (batch,) because batched=True" if self.layout.lanes else "a scalar tensor"
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise StructureError(f"`objective` must return {wanted}, here {tuple(z.shape[:-1])}, but returned {found}.")
        return value

    def gradient(self, z: Tensor) -> Tensor:
        """Return the gradient of the objective in z, shape `(*lanes, n)`."""
        return gradient(self.value, z, create_graph=self.recorded)

    def project(self, z: Tensor) -> Tensor:
        """Return the nearest point of the constraint set, lane by lane."""
        return self.constraint.project(z)

    def residual(self, z: Tensor, slope: Tensor) -> Tensor:
        """Return `|z - project(z - slope)|`, zero exactly at stationary points, shape `lanes`."""
        return residual(self.constraint, z, slope).detach()

    def motion(self, origin: Set, z: Tensor) -> Tensor:
        """Return how far the active constraints carry z when theta moves the set away from `origin`."""
        return self.constraint.motion(origin, z) if self.moving else torch.zeros_like(z)

    def detach(self) -> Bound:
        """Return the same problem with theta held constant, sharing what was computed for this theta."""
        return replace(self, slice=self.slice.detach(), theta=tree.detach(self.theta), recorded=False)


def residual(constraint: Set, z: Tensor, slope: Tensor) -> Tensor:
    """Return `|z - project(z - slope)|`, the natural residual of first-order optimality, shape `lanes`."""
    distance: Tensor = torch.linalg.vector_norm(z - constraint.project(z - slope), dim=-1)
    return distance


@dataclass(frozen=True)
class FlatProblem:
    """A lower problem for a given structure of theta and z, `lifts` times mapped over by `vmap`.

    Each lift adds a leading lane axis to z and a leading axis to every leaf of theta: the image of a problem
    under `vmap` is a batched problem, solved with the same code.
    """

    lower: LowerProblem
    layout: Layout
    spec: tree.TreeSpec
    lifts: int = 0

    @classmethod
    def of(cls, lower: LowerProblem, theta: Tree, z0: Tree) -> tuple[FlatProblem, Tensor, list[Tensor]]:
        """Return the problem, the flat start and the leaves of theta."""
        layout = Layout.of(z0, batched=lower.batched)
        leaves, spec = tree.flatten(theta, "theta")
        return cls(lower, layout, spec), layout.ravel(z0).detach(), leaves

    def lift(self) -> FlatProblem:
        """Return the problem with one more mapped axis."""
        return replace(self, lifts=self.lifts + 1)

    def bind(self, leaves: Sequence[Tensor]) -> Bound:
        """Return the problem at the theta with these leaves."""
        theta = tree.unflatten(leaves, self.spec)
        if not self.lifts:
            return Bound(slice_at(self.lower.objective, theta), self._set(theta), self.layout, theta, 0, self._moving)

        def value(leaves: Sequence[Tensor], z: Tensor) -> Tensor:
            return self.lower.objective(tree.unflatten(leaves, self.spec), self.layout.unravel(z))

        for _ in range(self.lifts):
            value = torch.vmap(value)
        return Bound(
            PlainSlice(value, list(leaves)), self._lifted_set(leaves), self.layout, theta, self.lifts, self._moving
        )

    @property
    def _moving(self) -> bool:
        return not isinstance(self.lower.constraint, Set)

    def _lifted_set(self, leaves: Sequence[Tensor]) -> Set:
        if not self._moving:
            return self._set(leaves)
        specs: list[tree.TreeSpec] = []

        def parameters(*leaves: Tensor) -> tuple[Tensor, ...]:
            tensors, spec = tree.flatten(self._set(tree.unflatten(leaves, self.spec)), "constraint")
            specs.append(spec)
            return tuple(tensors)

        for _ in range(self.lifts):
            parameters = torch.vmap(parameters)
        mapped = parameters(*leaves)
        lifted: Set = tree.unflatten(mapped, specs[0])
        return lifted

    def _set(self, theta: Tree) -> Set:
        constraint = self.lower.constraint
        found = constraint if isinstance(constraint, Set) else constraint(theta)
        if not isinstance(found, Set):
            raise StructureError(
                f"`constraint` must be a blo set, or a callable theta -> set, but gave {type(found).__name__}."
            )
        return found.fit(self.layout)
