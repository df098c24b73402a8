"""Constraints that the user writes as functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from blo import tree
from blo._layout import Layout
from blo._precision import require_single
from blo._term import Carry, Counts, Strain, Tangent
from blo._types import Tree
from blo._vectors import norm
from blo.errors import StructureError
from blo.sets._base import Set
from blo.sets._functions import Function, Functions
from blo.sets._hold import hold
from blo.sets._nearest import nearest
from blo.sets._rows import Face, times


@dataclass(frozen=True, eq=False, init=False)
class SmoothConstraints(Set):
    """`{ z : equalities(z) = 0, inequalities(z) <= 0 }` for functions that torch can differentiate twice.

    The functions take z like the objective does, and return `(k,)` values, or `(batch, k)` for a batched problem; a
    single constraint may leave out the last axis. With `theta` they are called as `function(theta, z)`. Tensors that
    they capture are constants: pass tensors that are to be differentiated or mapped over in `theta`.

    The tangent space comes from the Jacobian of the active functions, whose gradients should be linearly independent at
    the solution, and the curvature from their Hessians, weighted by multipliers that balance the objective's gradient.
    A projection solves a sequence of quadratic programmes with dense matrices of size n. If this fails (for an empty
    set, for example), it is NaN, which solvers report. For a set that is not convex, the projection is local.

    Source: Nocedal and Wright (Numerical optimization, 2006), algorithm 18.3 and section 18.3.

    Example:
        >>> import torch, blo
        >>> ellipse = blo.SmoothConstraints(inequalities=lambda theta, z: theta @ z.square() - 1, theta=torch.ones(2))
        >>> lower = blo.LowerProblem(lambda theta, z: (z - 2).square().sum(), ellipse)
        >>> blo.argmin(lower, torch.ones(2, requires_grad=True), torch.zeros(2), gradient=blo.Zero())
        tensor([0.7071, 0.7071])

    Attributes:
        functions: the functions with the layout of z.
        leaves: the tensors of theta.
        slack: largest distance from the boundary of an inequality, to first order and up to rounding, at which it may
            be active, see `Set`.
        max_steps: maximum number of quadratic programmes in a projection.
    """

    functions: Functions
    leaves: tuple[Tensor, ...]
    slack: float
    max_steps: int

    def __init__(
        self,
        equalities: Function | None = None,
        inequalities: Function | None = None,
        theta: Tree | None = None,
        *,
        slack: float = 1e-7,
        max_steps: int = 50,
    ) -> None:
        """Take the functions.

        Args:
            equalities: returns zero where the equations hold.
            inequalities: returns at most zero where the inequalities hold.
            theta: the second variable of the functions: a tree of tensors.
            slack: see the class.
            max_steps: see the class.

        Raises:
            StructureError: if there is no function, or theta has a leaf that is not a tensor; when the problem is
                solved, if a function captures a tensor that requires a gradient.
            ValueError: when the problem is solved, if `slack` is negative.
        """
        if equalities is None and inequalities is None:
            raise StructureError("`SmoothConstraints` needs `equalities` or `inequalities`. Without any, use `Free()`.")
        leaves, spec = ([], None) if theta is None else tree.flatten(theta, "theta")
        self._assign(Functions(equalities, inequalities, spec), tuple(leaves), slack, max_steps)

    def fit(self, layout: Layout) -> SmoothConstraints:
        require_single(layout.dtype, "SmoothConstraints")
        axes = tuple(leaf.ndim for leaf in self.leaves)
        fitted = SmoothConstraints.__new__(SmoothConstraints)
        functions = replace(self.functions, layout=layout, axes=axes)
        fitted._assign(functions, self.leaves, self.slack, self.max_steps)
        with torch.enable_grad():
            at = torch.zeros((*layout.lanes, layout.size), dtype=layout.dtype, device=layout.device)
            captured = functions.values([leaf.detach() for leaf in self.leaves], at).requires_grad
        if captured:
            raise StructureError(
                "the functions of `SmoothConstraints` capture a tensor that requires a gradient, but captured tensors "
                "are constants. Pass it as `theta=`, and take it as an argument: `function(theta, z)`. To use a "
                "constant, capture `tensor.detach()`."
            )
        return fitted

    def loosened(self, slack: float) -> Self:
        if self.slack >= slack:
            return self
        wider = type(self).__new__(type(self))
        wider._assign(self.functions, self.leaves, slack, self.max_steps)
        return wider

    def project(self, z: Tensor) -> Tensor:
        return nearest(self.functions, self.leaves, z, self.max_steps)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        planes = self._planes(z)
        distance, rounding, equal = planes.distance, planes.rounding, planes.equal
        held = hold(planes.rows, distance, gradient, rounding, self.slack, equal)
        face = held.face
        y = held.y / planes.regular  # from normals of length one to the gradients of the functions

        def count() -> Counts:
            fixed = face.held()
            undecided = held.undecided(distance - rounding, gradient, self.slack, z)
            undecided = undecided | ((distance - rounding <= self.slack) & ~(planes.length > 0))  # without a normal
            return Counts(z.shape[-1] - fixed, fixed, (undecided & ~equal).sum(-1))

        def bend(v: Tensor) -> Tensor:
            return self.functions.bend(self.leaves, z, y, v)

        def force(term: SmoothConstraints, at: Tensor) -> Tensor:
            return term.functions.pull(term.leaves, at, y)

        def motion(term: SmoothConstraints, at: Tensor) -> Tensor:
            return times(face.inverse, planes.shift(term, at))

        def duals(layout: Layout) -> dict[str, Tensor]:
            return {"equalities": y[..., equal], "inequalities": y[..., ~equal]}

        strain = Strain(held.surplus, lambda term, at: held.strain(planes.shift(term, at)))
        carry = Carry(SmoothConstraints.motion, motion)
        return Tangent(face.project, 0.0, count, bend=bend, force=force, motion=carry, strain=strain, duals=duals)

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        planes = origin._planes(z)
        near = planes.equal | (planes.distance - planes.rounding <= origin.slack)
        return times(Face.of(planes.rows, near).inverse, planes.shift(self, z))

    def _planes(self, z: Tensor) -> _Planes:
        # To first order, z lies at the distance -c / |grad c| inside the constraint c <= 0.
        values, jacobian = self.functions.linearize(self.leaves, z)
        equal = ~self.functions.unequal(self.leaves, z, values)
        # The lengths are constants: rows, `shift` and multipliers are all divided by them, so that for independent
        # normals they cancel in the motion J^+ dc and in the force J' y.
        length = torch.linalg.vector_norm(jacobian.detach(), dim=-1)
        regular = torch.where(length > 0, length, 1.0)
        rounding = 8 * torch.finfo(z.dtype).eps * norm(z.detach())
        rows = jacobian / regular.unsqueeze(-1)
        return _Planes(values, rows, -values.detach() / regular, rounding, length, regular, equal)

    def _assign(self, functions: Functions, leaves: tuple[Tensor, ...], slack: float, max_steps: int) -> None:
        # The dataclass is frozen and its constructor takes the functions themselves, so the fields are set here.
        for name, value in [("functions", functions), ("leaves", leaves), ("slack", slack), ("max_steps", max_steps)]:
            object.__setattr__(self, name, value)


class _Planes(NamedTuple):
    """The tangent planes of the functions at a point.

    Attributes:
        values: of the functions, shape `(*lanes, k)`.
        rows: normals of length one, shape `(*lanes, k, n)`; zero where there is none.
        distance: to the planes, shape `(*lanes, k)`; signed for equations.
        rounding: of the distance, shape `(*lanes, 1)`.
        length: of the functions' gradients, shape `(*lanes, k)`.
        regular: the same, and one where it is zero.
        equal: which functions are equations, shape `(k,)`.
    """

    values: Tensor
    rows: Tensor
    distance: Tensor
    rounding: Tensor
    length: Tensor
    regular: Tensor
    equal: Tensor

    def shift(self, term: SmoothConstraints, z: Tensor) -> Tensor:
        """Return how far each plane moves at z when the set becomes `term`, shape `(*lanes, k)`."""
        return (self.values - term.functions.values(term.leaves, z)) / self.regular
