"""Linear algebra with the normals of constraints as the rows of a matrix, one for each lane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blo._autodiff import settled
from blo._layout import Layout
from blo._precision import require_single
from blo.errors import StructureError


class Rows(NamedTuple):
    """Linear equations and inequalities, `normals z = right` in the first rows and `<=` in the others.

    Attributes:
        normals: shape `(*lanes, k, n)`; lanes may be of length one.
        right: shape `(*lanes, k)`.
        equations: the number of equations.
    """

    normals: Tensor
    right: Tensor
    equations: int

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return all rows, equations first."""
        lanes = torch.broadcast_shapes(*(p.right.shape[:-1] for p in parts), *(p.normals.shape[:-2] for p in parts))
        normals = [p.normals.expand(*lanes, *p.normals.shape[-2:]) for p in parts]
        rights = [p.right.expand(*lanes, p.right.shape[-1]) for p in parts]
        counts = [p.equations for p in parts]
        order = [
            *((i, slice(0, k)) for i, k in enumerate(counts)),
            *((i, slice(k, None)) for i, k in enumerate(counts)),
        ]
        return cls(
            torch.cat([normals[i][..., span, :] for i, span in order], -2),
            torch.cat([rights[i][..., span] for i, span in order], -1),
            sum(counts),
        )

    @classmethod
    def bounds(cls, layout: Layout, low: Tensor | float, high: Tensor | float) -> Rows:
        """Return bounds on coordinates; infinite numbers give no row."""
        one = torch.eye(layout.size, dtype=layout.dtype, device=layout.device)
        one = one.reshape((1,) * len(layout.lanes) + one.shape)
        none = torch.zeros_like(one[..., 0])
        sides = [(one, high)] if isinstance(high, Tensor) or high < math.inf else []
        sides += [(-one, -low)] if isinstance(low, Tensor) or low > -math.inf else []
        parts = [cls(normals, none + right, 0) for normals, right in sides]
        return cls.joined(parts) if parts else cls(one[..., :0, :], none[..., :0], 0)


def times(matrix: Tensor, v: Tensor) -> Tensor:
    """Return `matrix v` in each lane, shape `(*lanes, k)`, from `(*lanes, k, n)` and `(*lanes, n)`."""
    if math.prod(matrix.shape[:-2]) == 1:  # all lanes share it: do not copy it for each of them
        return v @ matrix.reshape(matrix.shape[-2:]).mT
    return (matrix @ v.unsqueeze(-1)).squeeze(-1)


def inverse(rows: Tensor, rtol: float | None = None) -> Tensor:
    """Return the pseudo-inverse, shape `(*lanes, n, k)`.

    Singular values up to `rtol` times the largest count as zero; by default `max(k, n)` times the dtype's epsilon.
    """
    least = max(rows.shape[-2:]) * torch.finfo(rows.dtype).eps if rtol is None else rtol
    found: Tensor = torch.linalg.pinv(rows, rtol=least)
    return found


@dataclass(frozen=True, eq=False)
class Face:
    """The face on which `rows z` is constant. Rows that are zero do not constrain it, and rows may be dependent.

    Attributes:
        rows: normals, shape `(*lanes, k, n)`.
        inverse: their pseudo-inverse.
    """

    rows: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, rows: Tensor, active: Tensor) -> Face:
        """Return the face of those rows that are active, booleans of shape `(*lanes, k)`."""
        # Other rows become zero, which the pseudo-inverse ignores, so that no shape depends on the values of tensors.
        normals = rows * active.unsqueeze(-1)
        return cls(normals, inverse(normals))

    @property
    def active(self) -> Tensor:
        """Which rows are active, shape `(*lanes, k)`."""
        return (self.rows != 0).any(-1)

    def without(self, rows: Tensor) -> Face:
        """Return the face with these rows left out, booleans of shape `(*lanes, k)`."""
        return Face.of(self.rows, ~rows)

    def project(self, v: Tensor) -> Tensor:
        """Return `(I - R^+ R) v` for the rows R: v without its part along the normals."""
        return v - times(self.inverse, times(self.rows, v))

    def multipliers(self, gradient: Tensor) -> Tensor:
        """Return the y of smallest norm that minimises `|gradient + rows' y|`, shape `(*lanes, k)`."""
        return -times(self.inverse.mT, gradient)  # (R')^+ = (R^+)'

    def held(self) -> Tensor:
        """Return the rank of the rows: the trace of the projector on their span, integers of shape `lanes`."""
        return (self.inverse * self.rows.mT).sum((-2, -1)).round().long()


def fit_rows(matrix: Tensor, right: Tensor | float, layout: Layout, name: str) -> tuple[Tensor, Tensor]:
    """Return A and b with the axes of `(*lanes, k, n)` and `(*lanes, k)`, in z's precision.

    Raises:
        StructureError: if A or b does not fit; the message names `name.A` or `name.b`.
    """
    require_single(layout.dtype, name)
    lanes, n = layout.lanes, layout.size
    k = matrix.shape[-2]
    if matrix.shape[-1] != n or tuple(matrix.shape[:-2]) not in {(), lanes}:
        allowed = f"(k, {n})" if not lanes else f"(k, {n}) or {(*lanes, 'k', n)}"
        raise StructureError(
            f"`{name}.A` must have shape {allowed}, one column for each coordinate of z, but has {tuple(matrix.shape)}."
            " The columns follow the leaves of z in order, each flattened."
        )
    b = torch.as_tensor(right, dtype=layout.dtype, device=right.device if isinstance(right, Tensor) else matrix.device)
    if tuple(b.shape) not in {(), (k,), (*lanes, k)}:
        allowed = f"() or ({k},)" if not lanes else f"(), ({k},) or {(*lanes, k)}"
        raise StructureError(f"`{name}.b` must have shape {allowed} for {k} rows, but has {tuple(b.shape)}.")
    if matrix.device != layout.device or b.device != layout.device:
        raise StructureError(f"`{name}` must be on {layout.device} like `z0`, but is on {matrix.device}. Use `.to`.")
    # Keep all axes, so that an axis which `vmap` adds in front lines up with that of z.
    rows = settled(matrix.to(layout.dtype)).reshape((1,) * (len(lanes) + 2 - matrix.ndim) + matrix.shape)
    b = b.expand(k) if b.ndim == 0 else b
    return rows, settled(b).reshape((1,) * (len(lanes) + 1 - b.ndim) + b.shape)


def require_matrix(matrix: Tensor, right: Tensor | float, name: str) -> None:
    """Raise unless there is a floating point matrix with a right-hand side that fits.

    Raises:
        StructureError: otherwise; the message names `name`.
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point() or matrix.ndim < 2:
        found = f"{matrix.dtype} of shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else type(matrix)
        raise StructureError(f"`{name}.A` must be a floating point tensor with rows and columns, but is {found}.")
    require_single(matrix.dtype, name)
    if isinstance(right, Tensor) and right.ndim > 0 and right.shape[-1] != matrix.shape[-2]:
        raise StructureError(
            f"`{name}.b` must have one entry for each of the {matrix.shape[-2]} rows of A, but has {right.shape[-1]}."
        )
