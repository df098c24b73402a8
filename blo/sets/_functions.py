"""The user's constraint functions of trees, as functions of flat tensors with their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import settled
from blo._layout import Layout
from blo._types import Tree
from blo.errors import StructureError

#: `(z) -> Tensor`, or `(theta, z) -> Tensor` where theta is given.
Function: TypeAlias = Callable[..., Tensor]


class Expansion(NamedTuple):
    """Functions near a point, to second order.

    Attributes:
        values: shape `(*lanes, k)`.
        jacobian: shape `(*lanes, k, n)`.
        hessian: the second derivative of the values weighted by multipliers, shape `(*lanes, n, n)`.
    """

    values: Tensor
    jacobian: Tensor
    hessian: Tensor


@dataclass(frozen=True, eq=False)
class Functions:
    """Equations, then inequalities. This object holds no tensors, apart from those that the functions capture.

    Attributes:
        equalities: returns zero where the equations hold; or None.
        inequalities: returns at most zero where the inequalities hold; or None.
        spec: the structure of theta; None where the functions take z alone.
        layout: that of z; None before it is known.
        axes: the number of axes of each leaf of theta, as the functions expect them.
    """

    equalities: Function | None
    inequalities: Function | None
    spec: tree.TreeSpec | None
    layout: Layout | None = None
    axes: tuple[int, ...] = ()

    def split(self, leaves: Sequence[Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of equations and inequalities, shapes `(*lanes, k)`.

        Leading axes of z that its layout does not have were put there by `vmap`, and leaves of theta may have them too.
        """
        if self.layout is None:
            raise StructureError(
                "`SmoothConstraints` does not know yet how z is flattened. Pass it to `LowerProblem`, or call "
                "`fit(layout)` first and use what it returns."
            )
        mapped = tuple(0 if leaf.ndim > axes else None for leaf, axes in zip(leaves, self.axes, strict=True))
        function = self._one
        for _ in range(z.ndim - 1 - len(self.layout.lanes)):
            function = torch.vmap(function, in_dims=(mapped, 0))
        return function(tuple(leaves), z)

    def values(self, leaves: Sequence[Tensor], z: Tensor) -> Tensor:
        """Return all values, shape `(*lanes, k)`."""
        return settled(torch.cat(self.split(leaves, z), -1))

    def linearize(self, leaves: Sequence[Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values with their Jacobian, shape `(*lanes, k, n)`."""
        # One backward pass for each constraint, all of them at once under `vmap`.
        values, pullback = torch.func.vjp(lambda at: self.values(leaves, at), z)[:2]
        k = values.shape[-1]
        units = torch.eye(k, dtype=z.dtype, device=z.device).reshape(k, *(1,) * (values.ndim - 1), k)
        jacobian = torch.vmap(lambda unit: pullback(unit)[0])(units.expand(k, *values.shape))
        return values, jacobian.movedim(0, -2)

    def pull(self, leaves: Sequence[Tensor], z: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of the values weighted by y, shape `(*lanes, n)`."""
        found: Tensor = torch.func.vjp(lambda at: self.values(leaves, at), z)[1](y)[0]
        return found

    def bend(self, leaves: Sequence[Tensor], z: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Return the second derivative of the values weighted by y, times v."""
        found: Tensor = torch.func.vjp(lambda at: self.pull(leaves, at, y), z)[1](v)[0]
        return found

    def unequal(self, leaves: Sequence[Tensor], z: Tensor, values: Tensor) -> Tensor:
        """Return which of the values belong to inequalities, booleans of shape `(k,)`."""
        equations = 0 if self.equalities is None else self.split(leaves, z)[0].shape[-1]
        return torch.arange(values.shape[-1], device=z.device) >= equations

    def expand(self, leaves: Sequence[Tensor], z: Tensor, y: Tensor) -> Expansion:
        """Return the functions at z to second order, with the multipliers y of shape `(*lanes, k)`."""

        def weighted(at: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            values, jacobian = self.linearize(leaves, at)
            return (jacobian * y.unsqueeze(-1)).sum(-2), (values, jacobian)

        _, pullback, *rest = torch.func.vjp(weighted, z, has_aux=True)
        values, jacobian = rest[0]
        n = z.shape[-1]
        units = torch.eye(n, dtype=z.dtype, device=z.device).reshape(n, *(1,) * (z.ndim - 1), n)
        found: Tensor = torch.vmap(lambda unit: pullback(unit)[0])(units.expand(n, *z.shape))
        return Expansion(values, jacobian, found.movedim(0, -2))

    def touch(self, leaves: Sequence[Tensor], z: Tensor) -> Expansion:
        """Return the functions at z to first order, with a Hessian of zero."""
        values, jacobian = self.linearize(leaves, z)
        return Expansion(values, jacobian, z.new_zeros((*z.shape, z.shape[-1])))

    def _one(self, leaves: tuple[Tensor, ...], z: Tensor) -> tuple[Tensor, Tensor]:
        assert self.layout is not None
        at: Tree = self.layout.unravel(z)
        arguments = (at,) if self.spec is None else (tree.unflatten(leaves, self.spec), at)
        found = []
        for name, function in (("equalities", self.equalities), ("inequalities", self.inequalities)):
            value = z[..., :0] if function is None else function(*arguments)
            lanes = tuple(z.shape[:-1])
            if not isinstance(value, Tensor) or tuple(value.shape[: len(lanes)]) != lanes or value.ndim > z.ndim:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise StructureError(
                    f"`{name}` must return a tensor of shape {(*lanes, 'k')} for k constraints"
                    f"{' of each problem' if lanes else ''}, or {lanes} for one, but returned {shape}."
                )
            found.append(value.unsqueeze(-1) if value.ndim < z.ndim else value)
        return found[0].to(z.dtype), found[1].to(z.dtype)
