"""Constraints that depend on each other: whether a solution that they hold has a derivative."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import plain, pullback
from blo._bound import Bound
from blo._term import Counts, Strain, Tangent

__all__ = ["strained"]


def strained(tangent: Tangent, bound: Bound, z: Tensor) -> Tangent:
    """Return the tangent, counting constraints as degenerate that depend on others but do not move like them.

    The solution then follows now these, now the others, and has one-sided derivatives only. Where constraints repeat
    each other, and go on to do so as theta moves, there is a derivative. It is looked at when the tangent counts.
    """
    strain = tangent.strain
    if strain is None or not bound.moving:
        return tangent

    def count() -> Counts:
        counts, surplus = tangent.counts(), strain.surplus()
        if bool(plain(surplus > 0).any()) and _parts(strain, bound, z):
            return counts._replace(degenerate=counts.degenerate + surplus)
        return counts

    return replace(tangent, count=count)


def _parts(strain: Strain, bound: Bound, z: Tensor) -> bool:
    """Tell whether theta drives dependent constraints apart, from two derivatives in theta along a random vector."""
    leaves = [leaf.detach() for leaf in tree.leaves(bound.theta)]
    leaves = [leaf.requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]
    live = [leaf for leaf in leaves if leaf.requires_grad]
    with torch.enable_grad():
        moved, left = strain.of(bound.rebind(leaves).term, z.detach())
    index = torch.arange(1, moved.numel() + 1, dtype=moved.dtype, device=moved.device)
    probe = (2 + index.square().cos()).reshape(moved.shape)

    def size(of: Tensor) -> float:
        return sum(float(part.double().square().sum()) for part in pullback([of], live, [probe]) if part is not None)

    return size(left) > torch.finfo(z.dtype).eps * size(moved)
