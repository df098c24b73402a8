"""Non-negative weights with a given sum and optional upper bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from blo._autodiff import plain
from blo._layout import Layout
from blo._multipliers import clear, negligible, unresolved
from blo._term import Carry, Counts, Tangent, can_validate, failing, fit_coordinates, fit_per_lane, per_lane
from blo._types import Tree
from blo._vectors import dot
from blo.errors import InfeasibleError
from blo.sets import _capped
from blo.sets._base import Set, in_single
from blo.sets._capped import Capped
from blo.sets._rows import Rows


@dataclass(frozen=True, eq=False)
class Simplex(Set):
    """`{ z : 0 <= z <= cap, sum(z) = total }`, the sum running over all of z (of each lane).

    Source: Held, Wolfe and Crowder (Math. Prog. 1974) and Duchi et al. (ICML 2008) for the projection; with a cap,
    Helgason, Kennington and Lall (Math. Prog. 1980).

    Attributes:
        total: a number, or a tensor of shape `()` or `lanes`; positive.
        cap: the greatest value of a coordinate: a number, a tensor of z's shape, or a tree like z; `inf` leaves a
            coordinate open. None: there is no cap.
        slack: largest distance from zero, or from its cap, at which a coordinate may be held there, see `Set`.
        validate: check a tensor total or cap, and the caps again when the problem is solved. Each is a host
            synchronisation on an accelerator.

    Raises:
        InfeasibleError: if a total is not positive (at zero the set is one point, without a derivative), a cap is
            negative or NaN, or the caps add up to less than the total.
        StructureError: when the problem is solved, if a parameter does not fit z.
        ValueError: when the problem is solved, if `slack` is negative.
    """

    total: Tensor | float = 1.0
    cap: Tree | None = None
    slack: float = 1e-7
    validate: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.cap, int | float) or (self.validate and can_validate() and isinstance(self.cap, Tensor)):
            _require_caps(self.cap)
        if isinstance(self.total, Tensor) and not (self.validate and can_validate()):
            return
        empty = failing(self.total > 0)
        if bool(empty.any()):
            raise InfeasibleError(
                f"`Simplex` needs total > 0, but {int(empty.sum())} of {empty.numel()} are zero, negative or "
                "NaN. If the total is learned, learn its logarithm."
            )

    def fit(self, layout: Layout) -> Simplex:
        total = fit_per_lane(self.total, layout, "Simplex.total")
        if self.cap is None:
            return replace(self, total=total, validate=False)  # validated when it was made
        cap = fit_coordinates(self.cap, layout, "Simplex.cap")
        fitted = replace(self, total=total, cap=cap, validate=False)
        if self.validate and can_validate():
            fitted._require_room(layout)
        return fitted

    @property
    def extent(self) -> Tensor | float:
        return 2**0.5 * per_lane(self.total)

    @in_single
    def project(self, z: Tensor) -> Tensor:
        """Return the nearest point of the simplex, by sorting.

        Source: Held, Wolfe and Crowder (1974), Validation of subgradient optimization; Duchi et al. (2008).
        """
        if self.cap is not None:
            return Capped.of(self).fill(z)[0]
        total = per_lane(self.total)
        # A common shift of z does not change the projection. Without it, the rounding of a large z swamps the total.
        shifted = z - z.detach().amax(-1, keepdim=True)
        descending = shifted.detach().sort(-1, descending=True).values
        rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
        sums = descending.cumsum(-1) - total
        # The largest r whose entry exceeds (the sum of the r largest entries - total) / r.
        kept = (descending * rank > sums).sum(-1, keepdim=True)
        support = shifted > torch.where(rank == kept, sums / rank, 0.0).sum(-1, keepdim=True)
        # Recompute the threshold from its support, so that only smooth operations are differentiated: the entries of
        # z - threshold on the support add up to the total.
        kept_sum = torch.where(support, shifted, 0.0).sum(-1, keepdim=True)
        threshold = (kept_sum - total) / support.sum(-1, keepdim=True)
        return (shifted - threshold).relu()

    def from_logarithms(self, logarithms: Tensor) -> Tensor | None:
        if self.cap is not None:
            return None
        # The projection in this divergence is a division by the sum, which `softmax` does without overflow.
        weights = per_lane(self.total) * logarithms.softmax(-1)
        return weights.clamp(min=torch.finfo(logarithms.dtype).tiny)

    def rows(self, layout: Layout) -> Rows:
        bounds = Rows.bounds(layout, 0.0, math.inf if self.cap is None else self.cap)
        total = torch.zeros_like(bounds.right[..., :1]) + per_lane(self.total)
        return Rows.joined([Rows(torch.ones_like(bounds.normals[..., :1, :]), total, 1), bounds])

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        if self.cap is not None:
            return _capped.tangent(Capped.of(self), z, gradient, Simplex.motion)
        # On the support the gradient is the multiplier of the sum; the multiplier of z_i >= 0 is gradient_i minus that.
        surely = self._surely(z)
        multiplier = gradient - dot(gradient, surely) / surely.sum(-1, keepdim=True)
        support = surely | clear(z, multiplier, self.slack)
        size = support.sum(-1, keepdim=True)

        def mean(v: Tensor) -> Tensor:
            return dot(v, support) / size

        def projector(v: Tensor) -> Tensor:
            return (v - mean(v)) * support

        def count() -> Counts:
            inner = support & (z > 0)
            undecided = ~inner & negligible(multiplier, gradient, projector(gradient) * inner)
            undecided = undecided | unresolved(z, multiplier, self.slack, z)
            free = size.squeeze(-1) - 1
            return Counts(free, z.shape[-1] - free, undecided.sum(-1))

        def motion(term: Simplex, at: Tensor) -> Tensor:
            return term._carried(self, support)

        def duals(layout: Layout) -> dict[str, Tree]:
            level = mean(gradient)
            low = torch.where(support, 0.0, gradient - level)
            return {"total": -level.squeeze(-1), "low": layout.unravel(low)}

        return Tangent(projector, 0.0, count, motion=Carry(Simplex.motion, motion), duals=duals)

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        if self.cap is not None:
            return _capped.motion(Capped.of(self), Capped.of(origin), z)
        return self._carried(origin, origin._surely(z))

    def _require_room(self, layout: Layout) -> None:
        """Raise if the caps add up to less than the total.

        Raises:
            InfeasibleError: also for a negative cap in a tree.
        """
        _require_caps(self.cap)
        z = torch.zeros((*layout.lanes, layout.size), dtype=layout.dtype, device=layout.device)
        short = plain(Capped.of(self).sack(z).empty(z))
        if bool(short.any()):
            raise InfeasibleError(
                f"`Simplex` needs caps that add up to `total` at least, but in {int(short.sum())} of {short.numel()} "
                "problems they add up to less. Raise `cap`, or lower `total`."
            )

    def _carried(self, origin: Self, support: Tensor) -> Tensor:
        return support * (per_lane(self.total) - per_lane(origin.total)) / support.sum(-1, keepdim=True)

    def _surely(self, z: Tensor) -> Tensor:
        """Return which coordinates are off zero whatever the gradient; in a small simplex, the largest ones."""
        return z >= z.amax(-1, keepdim=True).clamp(max=self.slack)


def _require_caps(cap: Any) -> None:
    """Raise if a cap is negative or NaN.

    Raises:
        InfeasibleError: if there is one.
    """
    wrong = failing(cap >= 0)
    if bool(wrong.any()):
        raise InfeasibleError(
            f"`Simplex` needs cap >= 0, but {int(wrong.sum())} of {wrong.numel()} are negative or NaN. If the cap is "
            "learned, learn its logarithm."
        )
