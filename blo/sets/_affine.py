"""Linear equations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from blo._autocast import without
from blo._autodiff import as_tensor, plain
from blo._layout import Layout
from blo._term import Counts, Strain, Tangent, can_validate, failing
from blo.errors import InfeasibleError
from blo.sets._base import Set
from blo.sets._rows import Face, Rows, fit_rows, inverse, require_matrix, times


@dataclass(frozen=True, eq=False)
class Affine(Set):
    """`{ z : A z = b }`.

    Equations may be redundant as long as they are consistent; the rank of A must then not change with theta. If theta
    moves redundant equations apart, the solution has no derivative, and they are counted as degenerate.

    Attributes:
        A: shape `(k, n)`, or `(*lanes, k, n)` for equations of each problem. The columns follow the leaves of z in
            order, each flattened.
        b: a number, or shape `(k,)` or `(*lanes, k)`.
        rtol: singular values of A up to `rtol` times the largest count as zero; by default `max(k, n)` times the
            dtype's epsilon.
        validate: raise if the equations contradict each other, which is one host synchronisation on an accelerator.
        inverse: the pseudo-inverse of A, computed once by `fit`.

    Raises:
        InfeasibleError: if no z solves the equations.
        StructureError: if A is not a floating point matrix or b has another length; when the problem is solved, if A
            does not have one column for each coordinate of z.
    """

    A: Tensor
    b: Tensor | float = 0.0
    rtol: float | None = None
    validate: bool = True
    inverse: Tensor | None = None

    @without
    def __post_init__(self) -> None:
        require_matrix(self.A, self.b, "Affine")
        if not (self.validate and can_validate()):
            return
        with torch.no_grad():
            A = self.A
            b = torch.as_tensor(self.b, dtype=A.dtype, device=A.device)
            b = b.expand(A.shape[:-1]) if b.ndim == 0 else b
            # A^+ b solves the equations if any z does. The scale bounds the terms whose rounding is in A z - b.
            z = times(inverse(A, self.rtol), b)
            defect = (times(A, z) - b).abs()
            scale = times(A.abs(), z.abs()) + b.abs()
            # The factor allows for rounding in the computation of A and b.
            wrong = failing((defect <= 16 * torch.finfo(A.dtype).eps * max(A.shape[-2:]) * scale).all(-1))
        if bool(wrong.any()):
            raise InfeasibleError(
                f"`Affine` needs consistent equations, but {int(wrong.sum())} of "
                f"{wrong.numel()} systems A z = b have no solution: rows of A are linearly dependent, but b "
                f"violates the same relation by {float(plain(defect).max()):.1e}. Leave out rows, or raise `rtol` if "
                "they are meant to be dependent."
            )

    def fit(self, layout: Layout) -> Affine:
        A, b = fit_rows(self.A, self.b, layout, "Affine")
        return replace(self, A=A, b=b, validate=False, inverse=inverse(A, self.rtol))  # valid since it was made

    def project(self, z: Tensor) -> Tensor:
        face = self._face
        moved = z - times(face.inverse, times(self.A, z) - self.b)
        # The second projection removes the rounding error of the first.
        return moved - times(face.inverse, times(self.A, moved) - self.b)

    def rows(self, layout: Layout) -> Rows:
        return Rows(self.A, as_tensor(self.b), self.A.shape[-2])

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        face = self._face
        y = face.multipliers(gradient)

        def count() -> Counts:
            held = face.held().expand(z.shape[:-1])
            return Counts(z.shape[-1] - held, held, torch.zeros_like(held))  # equations are never degenerate

        def force(term: Affine, at: Tensor) -> Tensor:
            # The normals turn with A, and the force with them even at a fixed z. A change of b only moves z.
            return times(term.A.mT, y)

        def surplus() -> Tensor:
            return self.A.shape[-2] - face.held().expand(z.shape[:-1])

        def strain(term: Affine, at: Tensor) -> tuple[Tensor, Tensor]:
            # A dz lies in the range of A, onto which A A^+ projects: z cannot follow the rest of the motion.
            moved = term._shift(self, at)
            return moved, moved - times(self.A, times(face.inverse, moved))

        duals = {"b": y}
        return Tangent(
            face.project, 0.0, count, force=force, strain=Strain(surplus, strain), duals=lambda layout: duals
        )

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        # A z = b gives dz = A^+ (db - dA z).
        return times(origin._face.inverse, self._shift(origin, z))

    def _shift(self, origin: Affine, z: Tensor) -> Tensor:
        """Return how far each right-hand side leaves `A z` behind, shape `(*lanes, k)`."""
        return (self.b - origin.b) - times(self.A - origin.A, z)

    @property
    def _face(self) -> Face:
        return Face(self.A, inverse(self.A, self.rtol) if self.inverse is None else self.inverse)
