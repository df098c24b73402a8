"""The quasi-Newton step within bounds: the Hessian of all coordinates, restricted to those that are free."""

from __future__ import annotations

import torch
from torch import Tensor

from blo.solvers import _line

__all__ = ["bounded_step", "used_pairs"]

#: Share of the newest pair's curvature above which the free coordinates tell the curvature off all pairs.
_SHARE = 0.1
#: Share of a step down the slope that takes a coordinate onto its bound where it is held: a margin in the unit of z.
_REACH = 0.1


def bounded_step(
    z: Tensor, slope: Tensor, low: Tensor, high: Tensor, moves: Tensor, turns: Tensor, unknown: Tensor
) -> Tensor:
    """Return minus the inverse Hessian of the free coordinates times their slope, minus the scaled slope elsewhere.

    The Hessian is that of BFGS from whole pairs. Pairs cut down to the free coordinates will not do: while coordinates
    move to their bounds, the slope on the others changes with them, and what is left of a pair tells no curvature.

    Source: Byrd, Lu, Nocedal and Zhu (SIAM J. Sci. Comput. 1995), section 5.1, for the inverse; Gafni and Bertsekas
    (SIAM J. Control Optim. 1984) for the two metrics.

    Args:
        z: the point, shape `(*lanes, n)`.
        slope: the slope there.
        low: the least value of each coordinate.
        high: the greatest value.
        moves: past changes of z, newest last, shape `(*lanes, memory, n)`; zero where there was none.
        turns: the changes of the slope along them.
        unknown: inverse curvature where no pair tells it, shape `(*lanes, 1)`.
    """
    used = used_pairs(moves, turns)
    inner = (moves * turns).sum(-1)
    weight = torch.where(used, torch.where(used, inner, 1.0).rsqrt(), 0.0).unsqueeze(-1)
    s, y = weight * moves, weight * turns
    newest = used & (used.flip(-1).cumsum(-1).flip(-1) == 1)
    known = used.any(-1, keepdim=True)
    scale = torch.where(known, 1.0 / torch.where(known, _of(newest, y, y), 1.0), unknown)
    free = _line.free(z, slope, low, high, _REACH * scale.detach() * slope.detach().abs())
    mask = free.unsqueeze(-2)
    share = _of(newest, mask * s, y)
    told = share > _SHARE
    gamma = torch.where(told, share / torch.where(told, _of(newest, mask * y, y), 1.0), scale)
    image = torch.where(free, _inverse(s, y, used, gamma.unsqueeze(-1), mask, slope * free), scale * slope)
    # Rounding can spoil the descent of an ill-conditioned inverse; the slope itself always descends.
    descends = (image * slope).sum(-1, keepdim=True) > 0
    return -torch.where(descends, image, scale * slope)


def used_pairs(moves: Tensor, turns: Tensor) -> Tensor:
    """Return which pairs have a curvature above rounding, shape `(*lanes, memory)`."""
    size = (moves.square().sum(-1) * turns.square().sum(-1)).sqrt().detach()
    return (moves * turns).sum(-1) > torch.finfo(moves.dtype).eps * size


def _of(newest: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of the newest rows, shape `(*lanes, 1)`."""
    return torch.where(newest, (a * b).sum(-1), 0.0).sum(-1, keepdim=True)


def _inverse(s: Tensor, y: Tensor, used: Tensor, gamma: Tensor, mask: Tensor, g: Tensor) -> Tensor:
    """Return the inverse of the free block of the BFGS matrix times g, for pairs of unit curvature.

    Where gamma is 1, that matrix is `I - W' N^-1 W` with the rows `W = [Y; S]` and the blocks `N = [-I, L'; L, S S']`,
    L being the part of `S Y'` below its diagonal. The inverse of its free block is `I + F' (N - F F')^-1 F`, where F is
    W on the free coordinates. Another inverse curvature gamma goes with Y, and with the whole.
    """
    s_free, y_free = s * mask, y * mask
    # S S' of the held coordinates alone: the difference would cancel to rounding where all are free.
    s_held = s - s_free
    one = torch.eye(s.shape[-2], dtype=s.dtype, device=s.device)
    empty = torch.diag_embed((~used).to(s.dtype))  # keeps the rows of no pair regular
    corner = (s @ y.mT).tril(-1) - s_free @ y_free.mT - empty
    top = torch.cat([-one - gamma * (y_free @ y_free.mT), corner.mT], dim=-1)
    bottom = torch.cat([corner, s_held @ s_held.mT / gamma], dim=-1)
    rows = torch.cat([gamma * y_free, s_free], dim=-2)
    # No check for a singular matrix, which would wait for the device: it ends in a NaN, which does not descend.
    found = torch.linalg.solve_ex(torch.cat([top, bottom], dim=-2), rows @ g.unsqueeze(-1))[0]
    image: Tensor = gamma.squeeze(-1) * g + (rows.mT @ found).squeeze(-1)
    return image
