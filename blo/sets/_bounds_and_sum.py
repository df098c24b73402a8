"""Linear constraints that are bounds on coordinates and at most one weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from blo.sets._knapsack import Knapsack


@torch.no_grad()
def bounds_and_sum(rows: Tensor, right: Tensor, equations: int) -> Knapsack | None:
    """Return `{ z : rows z <= right }` as constant bounds and one weighted sum; None if it does not have this form.

    Two opposite rows are an equation. Call it only where the values of tensors may be read.

    Args:
        rows: shape `(*lanes, k, n)`, of norm one or zero.
        right: shape `(*lanes, k)`.
        equations: the number of leading rows that are equations.
    """
    entries = (rows != 0).sum(-1)
    single, several = (entries == 1).expand(right.shape), (entries > 1).expand(right.shape)
    number = several.sum(-1, keepdim=True)
    most = int(number.max())
    possible = ((entries > 0) | (right >= 0)).all() & right.isfinite().all()
    if most > 2 or not bool(single.any()) or not bool(possible):
        return None
    rows = rows.expand(*right.shape, rows.shape[-1])
    first = torch.sort(several.long(), stable=True, dim=-1, descending=True).indices[..., :2]
    pair, limits = rows.gather(-2, first.unsqueeze(-1).expand(*first.shape, rows.shape[-1])), right.gather(-1, first)
    equal = (several & (torch.arange(right.shape[-1], device=right.device) < equations)).any(-1, keepdim=True)
    if most == 2:
        opposite = (pair.sum(-2) == 0).all(-1, keepdim=True) & (limits.sum(-1, keepdim=True) == 0)
        if not bool((opposite | (number < 2)).all()):
            return None
        equal = equal | (number == 2)
    index = torch.arange(right.shape[-1], device=right.device).unsqueeze(-1)
    both = single.unsqueeze(-1) & (index < equations)
    alone, value = single.unsqueeze(-1), right.unsqueeze(-1)
    # The entry of a row with a single one is 1 or -1, so its product with `right` is the bound on that coordinate.
    upper, lower = alone & (rows > 0), alone & (rows < 0)
    high = torch.where(upper | (both & lower), rows * value, torch.inf).amin(-2)
    low = torch.where(lower | (both & upper), rows * value, -torch.inf).amax(-2)
    some = number > 0
    return Knapsack(low + 0.0, high + 0.0, pair[..., 0, :] * some, limits[..., :1] * some, equal)
