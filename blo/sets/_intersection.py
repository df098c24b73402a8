"""Intersections of sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Self, cast

import torch
from torch import Tensor

from blo._autocast import without
from blo._autodiff import as_tensor, plain
from blo._layout import Layout
from blo._precision import require_single
from blo._settings import require_count
from blo._term import Tangent, can_validate, failing
from blo.errors import InfeasibleError, StructureError
from blo.sets import _meet
from blo.sets._base import Set
from blo.sets._dykstra import nearest, search
from blo.sets._free import Free
from blo.sets._halfspaces import Halfspaces
from blo.sets._meet import Meet, pushed_back
from blo.sets._rows import Rows


@dataclass(frozen=True, eq=False, init=False)
class Intersection(Set):
    """`{ z : z in each of the sets }`, for convex sets; each constrains all of z.

    Sets of linear equations and inequalities (`Box`, `NonNegative`, `Simplex`, `Affine`, `Halfspaces`, a `Product` of
    these) are combined into one `Halfspaces`; if there are no others, its projection is exact. Otherwise cycles of
    projections onto the parts approach the nearest point and Newton's method converges to it, with dense matrices of
    the size of z times the number of parts. If this fails (for an empty set that was not validated, or for sets that
    hardly more than touch from outside), the projection is NaN, which solvers report.

    The derivative is that on the intersection of all active faces, and each face has the curvature that belongs to its
    share of the gradient. A curved part whose share is not unique is counted as degenerate.

    A ball within bounds is faster as `L2Ball(radius, low=..., high=...)`.

    Source: Boyle and Dykstra (1986), A method for finding projections onto the intersection of convex sets in Hilbert
    spaces; Qi and Sun (Math. Prog. 1993) for Newton's method; O'Donoghue and Candes (Found. Comput. Math. 2015) for the
    restarts of the cycles.

    Attributes:
        sets: the parts, in the order given; after `fit`, those that remain.
        max_cycles: maximum number of cycles of projections.
        validate: raise if the set is empty, when the problem is solved; this costs one projection, and host
            synchronisations on an accelerator.
    """

    sets: tuple[Set, ...]
    max_cycles: int
    validate: bool

    def __init__(self, *sets: Set, max_cycles: int = 1000, validate: bool = True) -> None:
        """Take the sets.

        Raises:
            StructureError: if there are no sets, or an argument is not a set.
            ValueError: if `max_cycles` is below 1.
            InfeasibleError: when the problem is solved, if no common point is found.
        """
        found = tuple(part for part in sets if isinstance(part, Set))
        if not sets or len(found) != len(sets):
            names = [type(part).__name__ for part in sets]
            raise StructureError(f"`Intersection` takes one or more sets, but got {names}.")
        require_count(max_cycles, "max_cycles")
        self._assign(found, max_cycles, validate)

    @without
    def fit(self, layout: Layout) -> Set:
        require_single(layout.dtype, "Intersection")
        parts = [cast(Set, part.fit(layout)) for part in self._flat()]
        described = [(part, part.rows(layout)) for part in parts]
        others = [part for part, rows in described if rows is None]
        linear = [(part, rows) for part, rows in described if rows is not None and rows.right.shape[-1]]
        # One set of all linear constraints has an exact projection, and needs no cycles over its parts.
        if len(linear) > 1:
            slack = max(getattr(part, "slack", 0.0) for part, _ in linear)
            extent = self._with([part for part, _ in linear]).extent
            if extent is not None:  # a number has no axis that `vmap` could leave behind
                extent = torch.atleast_1d(as_tensor(extent).detach())
            others.insert(0, Halfspaces.of(Rows.joined([rows for _, rows in linear]), slack, extent))
        else:
            others[:0] = [part for part, _ in linear]
        fitted = self._with(others or [Free()])
        if self.validate and can_validate():
            fitted._require_point(layout)
        return fitted.sets[0] if len(fitted.sets) == 1 else fitted

    def apart(self, layout: Layout) -> Set:
        return self._with([part.apart(layout) for part in self.sets])

    @property
    def extent(self) -> Tensor | float | None:
        known = [part.extent for part in self.sets if part.extent is not None]
        if not known:
            return None
        return reduce(torch.minimum, map(as_tensor, known))

    def loosened(self, slack: float) -> Self:
        parts = [part.loosened(slack) for part in self.sets]
        same = all(new is old for new, old in zip(parts, self.sets, strict=True))
        return self if same else self._with(parts)

    def project(self, z: Tensor) -> Tensor:
        return nearest(self.sets, z, self.max_cycles)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        return _meet.tangent(self.sets, z, gradient, self.max_cycles, Intersection.motion)

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        # No gradient is given here. These press z against all faces that touch it, so that all of them count as active.
        shares = [-pushed_back(part, z) for part in origin.sets]
        tangents = [part.tangent(z, share) for part, share in zip(origin.sets, shares, strict=True)]
        pairs = zip(self.sets, origin.sets, strict=True)
        return Meet.of(origin.sets, z, shares, tangents).motion([part.motion(before, z) for part, before in pairs])

    def _flat(self) -> list[Set]:
        nested = (part._flat() if isinstance(part, Intersection) else [part] for part in self.sets)
        return [part for parts in nested for part in parts]

    def _require_point(self, layout: Layout) -> None:
        """Raise if the intersection is empty.

        Raises:
            InfeasibleError: if no point is found.
        """
        zero = torch.zeros((*layout.lanes, layout.size), dtype=layout.dtype, device=layout.device)
        with torch.no_grad():
            found = search(self.sets, zero, self.max_cycles)
        missed = failing(found.found & torch.isfinite(found.gap))
        if bool(missed.any()):
            gap = float(plain(found.gap)[missed].max())
            raise InfeasibleError(
                f"`Intersection` needs a point that lies in all its sets, but in {int(missed.sum())} of "
                f"{missed.numel()} problems none was found in {self.max_cycles} cycles: the nearest attempt leaves a "
                f"gap of {gap:.1e}. Make a set larger, or raise `max_cycles` if the sets "
                "meet at a small angle."
            )

    def _with(self, sets: Sequence[Set]) -> Self:
        other = type(self).__new__(type(self))
        other._assign(tuple(sets), self.max_cycles, self.validate)
        return other

    def _assign(self, sets: tuple[Set, ...], max_cycles: int, validate: bool) -> None:
        # The dataclass is frozen and its constructor takes the parts themselves, so the fields are set here.
        for name, value in [("sets", sets), ("max_cycles", max_cycles), ("validate", validate)]:
            object.__setattr__(self, name, value)
