"""The quasi-Newton step with bounds, from the BFGS matrix restricted to the free coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._vectors import dot
from blo.solvers import _line

__all__ = ["bounded_step"]

#: If the free coordinates hold at least this share of the newest pair's curvature, they give the scale of the inverse.
_SHARE = 0.1
#: A coordinate is at its bound if this share of a gradient step would reach the bound. This gives the margin the unit
#: of z.
_REACH = 0.1


def bounded_step(
    z: Tensor,
    slope: Tensor,
    low: Tensor,
    high: Tensor,
    s: Tensor,
    y: Tensor,
    used: Tensor,
    newest: Tensor,
    unknown: Tensor,
) -> Tensor:
    """Return the quasi-Newton step on the free coordinates, and a scaled gradient step on the others.

    The BFGS matrix is built from pairs of all coordinates and then restricted. Restricting the pairs instead would be
    wrong: while some coordinates move to their bounds, they change the gradient in the free ones, so the restricted
    pair does not describe a curvature of the free block.

    Source: Byrd, Lu, Nocedal and Zhu (SIAM J. Sci. Comput. 1995), section 5.1, for the inverse; Gafni and Bertsekas
    (SIAM J. Control Optim. 1984) for the two metrics.

    Args:
        z: the point, shape `(*lanes, n)`.
        slope: the gradient there.
        low: the lower bounds.
        high: the upper bounds.
        s: past changes of z, newest last, scaled to curvature 1, shape `(*lanes, memory, n)`; zero if not used.
        y: the changes of the gradient along them, with the same factors.
        used: the pairs that are used, booleans of shape `(*lanes, memory)`.
        newest: the newest of these.
        unknown: the inverse curvature to use without curvature pairs, shape `(*lanes, 1)`.
    """
    known = used.any(-1, keepdim=True)
    scale = torch.where(known, 1.0 / torch.where(known, _of(newest, y, y), 1.0), unknown)
    free = _line.free(z, slope, low, high, _REACH * scale.detach() * slope.detach().abs())
    mask = free.unsqueeze(-2)
    share = _of(newest, mask * s, y)
    enough = share > _SHARE
    gamma = torch.where(enough, share / torch.where(enough, _of(newest, mask * y, y), 1.0), scale)
    image = torch.where(free, _inverse(s, y, used, gamma.unsqueeze(-1), mask, slope * free), scale * slope)
    # For an ill-conditioned inverse, rounding can turn the step into an ascent direction. The negative gradient is
    # always a descent direction.
    descends = dot(image, slope) > 0
    return -torch.where(descends, image, scale * slope)


def _of(newest: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of a and b for the newest pair, shape `(*lanes, 1)`."""
    return torch.where(newest, (a * b).sum(-1), 0.0).sum(-1, keepdim=True)


def _inverse(s: Tensor, y: Tensor, used: Tensor, gamma: Tensor, mask: Tensor, g: Tensor) -> Tensor:
    """Return the inverse of the free block of the BFGS matrix times g, for pairs of curvature 1.

    For gamma = 1 this matrix is `I - W' N^-1 W` with the rows `W = [Y; S]` and the blocks `N = [-I, L'; L, S S']`,
    where L is the part of `S Y'` below its diagonal. By Woodbury's identity the inverse of the free block is
    `I + F' (N - F F')^-1 F`, where F is W on the free coordinates. Another inverse curvature gamma multiplies Y and the
    whole inverse.
    """
    s_free, y_free = s * mask, y * mask
    # Compute S S' - S_free S_free' from the other coordinates: the difference would be rounding error if all are free.
    s_held = s - s_free
    one = torch.eye(s.shape[-2], dtype=s.dtype, device=s.device)
    empty = torch.diag_embed((~used).to(s.dtype))  # keeps the matrix regular in the rows without a pair
    corner = (s @ y.mT).tril(-1) - s_free @ y_free.mT - empty
    top = torch.cat([-one - gamma * (y_free @ y_free.mT), corner.mT], dim=-1)
    bottom = torch.cat([corner, s_held @ s_held.mT / gamma], dim=-1)
    rows = torch.cat([gamma * y_free, s_free], dim=-2)
    # `solve_ex` does not test for a singular matrix, which would wait for the device. A singular matrix gives NaN, and
    # then the caller takes the gradient step.
    found = torch.linalg.solve_ex(torch.cat([top, bottom], dim=-2), rows @ g.unsqueeze(-1))[0]
    image: Tensor = gamma.squeeze(-1) * g + (rows.mT @ found).squeeze(-1)
    return image
