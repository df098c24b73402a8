"""Linear inequalities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from blo._autocast import without
from blo._autodiff import as_tensor, transforms_active
from blo._layout import Layout
from blo._term import Carry, Counts, Strain, Tangent, can_validate, failing
from blo._vectors import norm
from blo.errors import InfeasibleError
from blo.sets._active_set import onto, search
from blo.sets._base import Set
from blo.sets._bounds_and_sum import bounds_and_sum
from blo.sets._hold import hold
from blo.sets._knapsack import Knapsack
from blo.sets._rows import Face, Rows, fit_rows, require_matrix, times


@dataclass(frozen=True, eq=False)
class Halfspaces(Set):
    """`{ z : A z <= b }`.

    Rows may repeat or be linearly dependent. Each projection factorises a few k by k matrices to find the active rows;
    with dependent rows, it may factorise one for each row that enters or leaves the active set. So k
    should be at most a few hundred. If the search fails (an empty set that was not validated, or rounding), the
    projection is NaN, which solvers report.

    Source: Hintermüller, Ito and Kunisch (SIAM J. Optim. 2002) for exchanges of many rows at once; Goldfarb and Idnani
    (Math. Prog. 1983) for the search row by row.

    Attributes:
        A: shape `(k, n)`, or `(*lanes, k, n)` for inequalities of each problem. The columns follow the leaves of z in
            order, each flattened.
        b: a number, or shape `(k,)` or `(*lanes, k)`; `inf` leaves a row open.
        slack: largest distance from the plane of a row, up to rounding, at which it may be active, see `Set`.
        validate: raise if the set is empty, which costs one projection and host synchronisations on an accelerator.
        equations: the number of leading rows that hold with equality; `Intersection` makes such sets.
        extent: see `Set`; a number or shape `(*lanes, 1)`. `Intersection` knows it of its parts.
        prepared: rows scaled to norm one, right-hand sides and `A A'`, computed once by `fit`.
        knapsack: the same set as bounds and one weighted sum, if it has this form; computed once by `fit`.

    Raises:
        InfeasibleError: if no z satisfies the inequalities.
        StructureError: if A is not a floating point matrix or b has another length; when the problem is solved, if A
            does not have one column for each coordinate of z.
        ValueError: when the problem is solved, if `slack` is negative.
    """

    A: Tensor
    b: Tensor | float = 0.0
    slack: float = 1e-7
    validate: bool = True
    equations: int = 0
    extent: Tensor | float | None = None
    prepared: tuple[Tensor, Tensor, Tensor] | None = None
    knapsack: Knapsack | None = None

    @without
    def __post_init__(self) -> None:
        require_matrix(self.A, self.b, "Halfspaces")
        if not (self.validate and can_validate()):
            return
        with torch.no_grad():
            rows, right, gram = self._prepare()
            origin = rows.new_zeros((*torch.broadcast_shapes(rows.shape[:-2], right.shape[:-1]), rows.shape[-1]))
            # Every point has a nearest one in a set that is not empty, so the search may start anywhere.
            empty = failing(search(rows, right, gram, origin, self._equal(rows)).solved)
        if bool(empty.any()):
            raise InfeasibleError(
                f"`Halfspaces` needs a z with A z <= b, but {int(empty.sum())} of {empty.numel()} systems have none "
                "or hold a NaN. Look for rows that contradict each other."
            )

    def fit(self, layout: Layout) -> Halfspaces:
        A, b = fit_rows(self.A, self.b, layout, "Halfspaces")
        # Validated when it was made. What an earlier `fit` prepared may belong to other rows, by `dataclasses.replace`.
        return replace(self, A=A, b=b, validate=False, prepared=None, knapsack=None)._ready()

    @classmethod
    def of(cls, rows: Rows, slack: float, extent: Tensor | float | None) -> Halfspaces:
        """Return fitted rows as a set of this extent."""
        return cls(rows.normals, rows.right, slack, False, rows.equations, extent)._ready()

    def rows(self, layout: Layout) -> Rows:
        return Rows(self.A, as_tensor(self.b), self.equations)

    def project(self, z: Tensor) -> Tensor:
        rows, right, gram = self._prepare()
        # A knapsack is constant and leaves out entries that are zero. To differentiate, all entries of the rows count.
        if not (transforms_active() or (torch.is_grad_enabled() and any(t.requires_grad for t in (z, rows, right)))):
            knapsack = self._knapsack() if self.prepared is None else self.knapsack
            if knapsack is not None:
                return knapsack.fill(z).point
        found = search(rows, right, gram, z, self._equal(rows))
        return torch.where(found.solved, onto(rows, right, gram, z, found), torch.nan)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        distance, rounding = self._distance(z)
        rows = self._prepare()[0]
        held = hold(rows, distance, gradient, rounding, self.slack, self._equal(rows))
        face, y = held.face, held.y

        def count() -> Counts:
            fixed = face.held()
            undecided = held.undecided(distance - rounding, gradient, self.slack, z)
            return Counts(z.shape[-1] - fixed, fixed, undecided.sum(-1))

        def force(term: Halfspaces, at: Tensor) -> Tensor:
            return times(term._prepare()[0].mT, y)

        def motion(term: Halfspaces, at: Tensor) -> Tensor:
            return times(face.inverse, term._shift(self, at))

        def strain(term: Halfspaces, at: Tensor) -> tuple[Tensor, Tensor]:
            return held.strain(term._shift(self, at))

        def duals(layout: Layout) -> dict[str, Tensor]:
            length = torch.linalg.vector_norm(self.A, dim=-1)  # from rows of length one to those that were given
            return {"b": y / torch.where(length > 0, length, 1.0)}

        carry, strains = Carry(Halfspaces.motion, motion), Strain(held.surplus, strain)
        return Tangent(face.project, 0.0, count, force=force, motion=carry, strain=strains, duals=duals)

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        distance, rounding = origin._distance(z)
        rows = origin._prepare()[0]
        near = distance - rounding <= origin.slack
        equal = origin._equal(rows)
        face = Face.of(rows, near if equal is None else near | equal)
        return times(face.inverse, self._shift(origin, z))

    def _ready(self) -> Halfspaces:
        fitted = replace(self, prepared=self._prepare())
        return fitted if transforms_active() else replace(fitted, knapsack=fitted._knapsack())

    def _equal(self, rows: Tensor) -> Tensor | None:
        """Return which rows are equations, booleans of shape `(k,)`; None where none is."""
        return torch.arange(rows.shape[-2], device=rows.device) < self.equations if self.equations else None

    def _knapsack(self) -> Knapsack | None:
        return bounds_and_sum(*self._prepare()[:2], self.equations)

    def _distance(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance to each row's plane and its rounding, shape `(*lanes, k)`."""
        rows, right, _ = self._prepare()
        # Rounding moves a projected point off its planes, in single precision by more than the slack.
        size = norm(z.detach()) + right.detach().abs()
        distance = torch.where((rows != 0).any(-1), (right - times(rows, z)).detach(), torch.inf)
        return distance, 8 * torch.finfo(z.dtype).eps * size

    def _shift(self, origin: Halfspaces, z: Tensor) -> Tensor:
        """Return how far each plane moves at z, shape `(*lanes, k)`."""
        rows, right, _ = self._prepare()
        # The plane a z = b moves by db - da z along its normal a of length one, to first order.
        rows_then, right_then, _ = origin._prepare()
        return (right - right_then) - times(rows - rows_then, z)

    def _prepare(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.prepared is not None:
            return self.prepared
        A = self.A
        b = torch.as_tensor(self.b, dtype=A.dtype, device=A.device)
        b = b.expand(A.shape[-2]) if b.ndim == 0 else b
        # A row that is open, or zero, becomes `0 z <= 1` or `0 z <= -1`, so that no infinite number is used.
        bounded = torch.isfinite(b) | b.isnan()
        norm = torch.linalg.vector_norm(A.detach(), dim=-1) > 0
        usable = norm & bounded
        # Ones in place of rows that are not usable: a division by the length zero would put NaN into derivatives, even
        # though its result is not selected.
        length = torch.linalg.vector_norm(torch.where(usable.unsqueeze(-1), A, 1.0), dim=-1)
        rows = torch.where(usable.unsqueeze(-1), A / length.unsqueeze(-1), 0.0)
        right = torch.where(usable, b / length, torch.where(b < 0, -1.0, torch.where(b.isnan(), b, 1.0)))
        return rows, right, rows @ rows.mT
