"""Non-negative weights with a given sum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from blo._layout import Layout
from blo._multipliers import clear, negligible, unresolved
from blo._term import Carry, Counts, Tangent, can_validate, fit_per_lane, per_lane
from blo.errors import InfeasibleError
from blo.sets._base import Set


@dataclass(frozen=True, eq=False)
class Simplex(Set):
    """`{ z : z >= 0, sum(z) = total }`, the sum running over all of z (of each lane).

    Attributes:
        total: a number, or a tensor of shape `()` or `lanes`; positive.
        slack: the support is where `z > slack`; absolute, in z's unit.
        validate: look at a tensor total. That is a host synchronisation on an accelerator.

    Raises:
        InfeasibleError: if a total is not positive. (At zero the set is one point, without a derivative.)
    """

    total: Tensor | float = 1.0
    slack: float = 1e-7
    validate: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.total, Tensor) and not (self.validate and can_validate()):
            return
        empty = torch.as_tensor(self.total > 0).logical_not()
        if bool(empty.any()):
            raise InfeasibleError(
                f"`Simplex` needs total > 0, but {int(empty.sum())} of {empty.numel()} are zero, negative or "
                "NaN. If the total is learned, learn its logarithm."
            )

    def fit(self, layout: Layout) -> Simplex:
        total = fit_per_lane(self.total, layout, "Simplex.total")
        return replace(self, total=total, validate=False)  # it was looked at when made

    @property
    def extent(self) -> Tensor | float:
        return 2**0.5 * per_lane(self.total)

    def project(self, z: Tensor) -> Tensor:
        """Return the nearest point of the simplex, by sorting.

        Source: Held, Wolfe and Crowder (1974), Validation of subgradient optimization; Duchi et al. (2008).
        """
        total = per_lane(self.total)
        # The projection ignores a common shift; without it the total drowns in the rounding of large z.
        shifted = z - z.detach().amax(-1, keepdim=True)
        descending = shifted.detach().sort(-1, descending=True).values
        rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
        sums = descending.cumsum(-1) - total
        kept = (descending * rank > sums).sum(-1, keepdim=True)
        support = shifted > torch.where(rank == kept, sums / rank, 0.0).sum(-1, keepdim=True)
        # The threshold again, from the support it gave, so that only smooth operations are differentiated.
        kept_sum = torch.where(support, shifted, 0.0).sum(-1, keepdim=True)
        threshold = (kept_sum - total) / support.sum(-1, keepdim=True)
        return (shifted - threshold).relu()

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        # The multiplier of z_i >= 0 is its gradient less that of the sum, which the support shares.
        surely = self._surely(z)
        multiplier = gradient - (gradient * surely).sum(-1, keepdim=True) / surely.sum(-1, keepdim=True)
        support = surely | clear(z, multiplier, self.slack)
        size = support.sum(-1, keepdim=True)

        def mean(v: Tensor) -> Tensor:
            return (v * support).sum(-1, keepdim=True) / size

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

        return Tangent(projector, 0.0, count, motion=Carry(Simplex.motion, motion))

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        return self._carried(origin, origin._surely(z))

    def _carried(self, origin: Self, support: Tensor) -> Tensor:
        return support * (per_lane(self.total) - per_lane(origin.total)) / support.sum(-1, keepdim=True)

    def _surely(self, z: Tensor) -> Tensor:
        """Return which coordinates are off zero whatever the gradient; of a small simplex, the largest one."""
        return z >= z.amax(-1, keepdim=True).clamp(max=self.slack)
